"""Pure mathematics of the bridge on tensors: schedules, denoisers, solvers, guidance, Gaussianity."""
