package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// answers are the last errors of a call that was tried on several members, so that
// the error in the end says what is wrong and not only whom was asked last.
type answers struct {
	addresses []string // in the order in which they last answered
	byAddress map[string]error
}

func (a *answers) note(address string, err error) {
	if a.byAddress == nil {
		a.byAddress = make(map[string]error)
	}
	a.addresses = append(slices.DeleteFunc(a.addresses, func(s string) bool { return s == address }), address)
	a.byAddress[address] = err
}

// failed returns the error of a call to the shard that ended with cause.
func (a *answers) failed(shard string, cause error) error {
	if len(a.addresses) == 0 {
		return fmt.Errorf("shard %s: %w", shard, cause)
	}
	main := a.main()
	var others strings.Builder
	for _, address := range a.addresses {
		if address != main {
			fmt.Fprintf(&others, "; from %s: %v", address, typed(a.byAddress[address]))
		}
	}
	return fmt.Errorf("shard %s: %w: last answer, from %s: %w%s", shard, cause, main, typed(a.byAddress[main]), others.String())
}

// main returns the address whose answer says most: the last one that says more
// than that another member leads, else the last one.
func (a *answers) main() string {
	for _, address := range slices.Backward(a.addresses) {
		if !errors.Is(typed(a.byAddress[address]), refusal.ErrNotLeader) {
			return address
		}
	}
	return a.addresses[len(a.addresses)-1]
}
