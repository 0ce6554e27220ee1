// Package matching holds the order book of one instrument and executes orders
// against it by price-time priority: the best price first, at one price the
// order that came first.
//
// A Book is a plain data structure for one goroutine. It reads no clock, does no
// I/O and, once its pools have grown to what the instrument needs, allocates
// nothing. The same calls in the same order give the same fills everywhere,
// which is what rebuilding the exchange from its records rests on.
//
// # Structure
//
//	half (buy, sell) ── best ─► level ─worse─► level ─► …      ranked list of price levels
//	        │                     │ head … tail
//	        │                     └─► node ─next─► node ─► …   orders in time priority
//	        └── index: rank ─► level                           32-way trie of bitmaps, see index.go
//
// Matching walks the two lists and never asks the index; the index finds the
// level of an order that comes to rest, and the place of a level that is not
// there yet. The reasons for the trie are in docs/decisions/0003-price-levels.md.
package matching
