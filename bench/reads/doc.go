// Package reads asks a store for what it holds: records by an order's or a trade's
// id, ranges of a stream, whole streams, and its end as it grows. It sets the store
// beside pebble, which is given the same records with the keys that a user would
// choose, and asks a node over gRPC for the same.
package reads
