"""What is done with a run, and the folder that holds it."""
