"""The model of a node: opened and checked, the files of its pictures, the memory that decoding takes."""
