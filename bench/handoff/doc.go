// Package handoff measures the way of one notification off the trading path: what
// it costs the publisher, and when another process sees it.
//
// Our side publishes to the exchange's outbox as the gateway does: reserve, fill
// 128 bytes in place, publish with one store. A single publisher needs no lock;
// several take turns under a mutex, as requests do in the exchange's router. The
// peers are a buffered channel with a send that does not wait, and the bounded
// queues of xsync: for one producer and one consumer, and for many. Both hold as
// many records as one of the outbox's files. The floor is a bare copy of 128 bytes
// into mapped memory.
//
// Another process is this program, started again with an environment variable set.
package handoff
