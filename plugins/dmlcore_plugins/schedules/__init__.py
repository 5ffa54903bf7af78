"""Built-in schedules of the learning rate, one module each."""
