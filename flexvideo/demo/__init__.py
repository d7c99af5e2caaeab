"""What the first command shows: what a geometry costs, and two small models that were trained for it."""
