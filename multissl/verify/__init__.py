"""Whether training is right on a machine: every objective on several processes beside one, as `multissl verify`."""
