from tests.node.conftest import node, north, south

__all__ = ["node", "north", "south"]
