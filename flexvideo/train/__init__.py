"""Training at random sizes: recipes, the loop, and checkpoints that a run goes on from."""
