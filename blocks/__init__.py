"""What a layer may hold: the block variants, how they start from the parent, what they cost."""

if __name__ != "puzzle.blocks":
    raise ImportError("import puzzle.blocks, not blocks: a second copy of every class would follow")
