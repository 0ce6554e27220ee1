// Package exchange puts an exchange together: order router, outbox and
// subscriber, and the recovery that precedes the first order.
//
// # Recovery
//
// Open brings an exchange back to where it was, in this order:
//
//  1. It opens the outbox, which no other exchange may have open.
//  2. It asks every shard what its streams end with, and compares the records
//     that the outbox still holds for delivery with those that are stored. A
//     difference ends the start: ErrDiverged, with both records.
//  3. It opens every stream of every shard with an epoch above all before it: no
//     other exchange can write from here on. What one wrote meanwhile is compared
//     again.
//  4. It starts the subscriber and lets it deliver what the outbox still holds,
//     for up to Config.DrainWait.
//  5. It reads every stream of every shard, merges them by their global number
//     with what is not delivered yet, and replays them: each number must be
//     there once, and each record must follow from those before it.
//  6. It compares the result with the state file: when the replay passes the
//     state that was noted there, the hashes must be equal, and it must not end
//     before. Then the result must end exactly where the outbox ends.
//  7. It lists the instruments that are not listed yet, and records terms that
//     changed.
//
// # Where the records come from
//
// The stores are needed for all records that the outbox has recycled. So when a
// shard does not answer, or takes nothing, within Config.StorageWait, Open fails,
// but for two cases:
//
//   - The outbox still holds every record from the first on, and the machine has
//     not gone down since it was last in order. Then it alone is replayed.
//   - The outbox is empty and Config.Init declares that this is the first start
//     of the cluster, with nothing stored anywhere.
//
// In both cases the shards get Config.DrainWait, not StorageWait, to answer. When
// all of them are back, the subscriber opens every stream and makes the comparison
// of step 2, before it delivers anything; if it finds a difference, or another
// exchange opens the streams later, the exchange stops, see Failed.
//
// An empty outbox in front of stores that hold records is one that replaces a
// lost outbox: it goes on after the highest global number stored. An outbox that
// is behind the stores although the machine did not go down is refused: another
// exchange has written.
//
// # A subscriber in another process
//
// With Config.ExternalSubscriber this process has no lane. It reads the stores at
// its start, for the comparison and the replay, and writes to them then: it opens
// the streams, and it delivers what a restart of the machine left of the outbox
// behind what is stored. After step 3 it gives the other process its grant, see
// package subscriber, and leaves step 4 out: the replay takes what is not delivered
// from the outbox. An exchange that started without the stores fences and compares
// in the background until it has done so once, and gives the grant then.
//
// It trades whether the other process runs or not, until Config.Policy applies. That
// it was fenced, or that a store diverges, it hears from the other process only.
//
// # What a lost outbox costs
//
// Each shard gets its records at its own pace. When an outbox is lost, or its end
// with the machine, the streams may end unevenly: one holds records of a time of
// which another one lacks some. Nothing can be rebuilt from the first missing
// record on. Nothing durable is among that: an order that was asked to be durable
// is acknowledged when every record up to its last one, of all streams, is on a
// quorum. Such a start fails, and says which records it is about. With
// Config.AcceptLoss it goes on before the first missing record; those that stand
// behind it stay in the stores, and a HistoryCut in their streams says that they do
// not count. What such an outbox still holds is delivered before.
//
// # The state file
//
// <outbox>.state holds the last known state: a global number and the hash of the
// state after that record. It is replaced at an orderly end, and every
// Config.StateEvery in between. Removing it gives up the comparison, and the note
// that records were dropped, after which no start is possible: ErrDropped.
package exchange
