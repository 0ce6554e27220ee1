// Package orders measures the trading path: from an order to its answer, with all
// its notifications published to an outbox, in process and through gRPC.
//
// The flow is that of package synthetic: quotes around a price that walks at
// random, cancels, amends, marketable orders and sweeps. It is drawn beforehand
// against an exchange of its own. As the exchange is deterministic, the same
// requests lead to the same results in every run, and neither drawing nor the
// search for an order's id is part of what is timed.
//
// At a fixed rate a request's latency counts from the instant at which it is due,
// whenever it is sent: a stall is charged to all requests that it delays.
package orders
