package node

import (
	"os"
	"runtime"
	"sync"
)

// writers is how many of a node's goroutines are most often in a write to the disk
// that nobody waits for: a flush or a merge, and the log's next segment.
const writers = 2

// makeRoomForWriters raises GOMAXPROCS, once in a process. A goroutine keeps its
// processor during a system call until the runtime's monitor takes it away, which
// may look as seldom as each 10 ms. On two cores a flush and a segment that is being
// prepared could so hold up everything else, while the cores had nothing to do.
// A GOMAXPROCS in the environment stays as it is. The runtime's own choice is not
// followed any further when a CPU limit is changed in place.
var makeRoomForWriters = sync.OnceFunc(func() {
	runtime.GOMAXPROCS(processors(os.Getenv("GOMAXPROCS"), runtime.GOMAXPROCS(0)))
})

// processors returns how many there should be, if the environment asks for asked and
// the runtime has chosen chosen.
func processors(asked string, chosen int) int {
	if asked != "" {
		return chosen
	}
	return chosen + writers
}
