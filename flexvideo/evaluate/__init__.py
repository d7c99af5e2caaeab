"""Features at a grid of geometries, what they are good for, and the tables and figures drawn from that."""
