package replica

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
)

// A command is a Raft log entry: its kind and version stand in the entry's
// Extensions, its payload is the entry's Data. The payload of a batch is thereby
// handed from the client to the log without a copy, and stays aligned.
//
// Extensions, 2 bytes:
//
//	offset size meaning
//	     0    1 kind, see commandKind
//	     1    1 version of the kind's payload, 1
//
// Payloads:
//
//	batch        the batch in the layout of package record
//	open stream  16 bytes instrument, 8 bytes epoch (little-endian)
//	set owned    16 bytes for each instrument
//
// The numbers are part of the log's format and are never used again.
type commandKind uint8

const (
	commandBatch      commandKind = 1
	commandOpenStream commandKind = 2
	commandSetOwned   commandKind = 3
)

const (
	commandVersion = 1
	extensionBytes = 2
	openBytes      = record.SymbolSize + 8
)

// Extensions of the commands, shared by all entries and never changed.
var (
	batchExtensions = []byte{byte(commandBatch), commandVersion}
	openExtensions  = []byte{byte(commandOpenStream), commandVersion}
	ownedExtensions = []byte{byte(commandSetOwned), commandVersion}
)

func openCommand(sym record.Symbol, epoch uint64) raft.Log {
	data := binary.LittleEndian.AppendUint64(sym[:], epoch)
	return raft.Log{Data: data, Extensions: openExtensions}
}

func ownedCommand(instruments []record.Symbol) raft.Log {
	data := make([]byte, 0, len(instruments)*record.SymbolSize)
	for _, sym := range instruments {
		data = append(data, sym[:]...)
	}
	return raft.Log{Data: data, Extensions: ownedExtensions}
}

// kindOf returns a command's kind, or an error that says that this build must not
// go on: to skip an entry that others apply would make the replicas differ.
func kindOf(l *raft.Log) (commandKind, error) {
	if len(l.Extensions) != extensionBytes {
		return 0, fmt.Errorf("log entry %d: %w: %d bytes of extensions, not %d", l.Index, record.ErrCorrupt, len(l.Extensions), extensionBytes)
	}
	kind, version := commandKind(l.Extensions[0]), l.Extensions[1]
	if kind < commandBatch || kind > commandSetOwned || version != commandVersion {
		return 0, fmt.Errorf("log entry %d: %w: command kind %d version %d: upgrade this node", l.Index, record.ErrVersion, kind, version)
	}
	return kind, nil
}

func parseOpen(l *raft.Log) (sym record.Symbol, epoch uint64, err error) {
	if len(l.Data) != openBytes {
		return sym, 0, fmt.Errorf("log entry %d: %w: open stream of %d bytes, not %d", l.Index, record.ErrCorrupt, len(l.Data), openBytes)
	}
	copy(sym[:], l.Data)
	return sym, binary.LittleEndian.Uint64(l.Data[record.SymbolSize:]), sym.Check()
}

func parseOwned(l *raft.Log) ([]record.Symbol, error) {
	if len(l.Data)%record.SymbolSize != 0 {
		return nil, fmt.Errorf("log entry %d: %w: set owned of %d bytes", l.Index, record.ErrCorrupt, len(l.Data))
	}
	out := make([]record.Symbol, len(l.Data)/record.SymbolSize)
	for i := range out {
		copy(out[i][:], l.Data[i*record.SymbolSize:])
		if err := out[i].Check(); err != nil {
			return nil, fmt.Errorf("log entry %d: %w", l.Index, err)
		}
	}
	return out, nil
}
