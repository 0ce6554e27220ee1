// Package growth measures what one more of each thing costs: an instrument of a
// shard, a shard of an exchange, an account, an open order, a record of history.
package growth
