"""Settings and options searched on the validation classes, by trials of equal length. Optuna chooses what is tried next."""
