"""A procedurally drawn world of captioned scenes, its edits, and a checker of pictures."""
