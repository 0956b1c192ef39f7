"""Starting and stopping a cluster over ssh, from its cluster file (DESIGN.md)."""
