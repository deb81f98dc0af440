//! A Kubernetes API server for tests: the few kinds Loden uses, with every fault on command.
