"""Tree policies: which drawn tokens become nodes, and which nodes are grown further."""
