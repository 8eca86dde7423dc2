// Not vectorised yet: dispatch_plain.cc takes the plain kernels.
