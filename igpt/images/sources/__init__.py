"""Readers of data sets and image collections, each behind the one interface of `source`."""
