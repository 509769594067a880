"""Where cluster state rests: one interface, two implementations (etcd for real, memory as its in-process twin)."""
