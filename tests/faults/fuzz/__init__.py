"""Mutated inputs of every reader: each is read, or refused in a line that names it, soon and in little memory."""
