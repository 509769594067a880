"""The store over a real etcd.

settings says where it is, methods names the calls, client asks whichever member answers, faults says what a failure means,
watch keeps watches alive over broken connections, store puts them together as a Store.
"""

from paceline_control_plane.store.etcd.settings import EtcdSettings
from paceline_control_plane.store.etcd.store import EtcdStore, make_etcd_store

__all__ = ["EtcdSettings", "EtcdStore", "make_etcd_store"]
