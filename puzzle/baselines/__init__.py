"""What a search must beat: simpler ways to make a child from the same library."""
