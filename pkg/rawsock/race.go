//go:build race

package rawsock

import "sync/atomic"

// order tells the race detector, as package syscall does, that what was done
// before something was sent is done before what follows its receipt.
var order atomic.Int64

func sending()  { order.Add(1) }
func received() { order.Load() }
