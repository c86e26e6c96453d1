//go:build !race

package rawsock

func sending()  {}
func received() {}
