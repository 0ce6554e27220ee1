// Package kubeshards takes a cluster's shard map from the InstrumentShards of a
// Kubernetes namespace, and keeps a client's members as they say.
//
// Which instruments there are, and which shard has them, is fixed when the map is
// taken: a client's callers rely on that. Members come and go afterwards. What else
// changes is told in the log and in a metric, and has to wait for a restart.
//
// The API server is needed to take the map, and not afterwards: while it is away the
// members are those that it told of last.
package kubeshards
