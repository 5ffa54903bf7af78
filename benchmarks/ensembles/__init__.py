"""`python -m benchmarks ensembles`: what ensembles of losses give on classes they have not seen, with the controls without
which no claim stands. `data` prepares the splits, `arms` says what is compared, `runs` trains, `report` writes the tables."""
