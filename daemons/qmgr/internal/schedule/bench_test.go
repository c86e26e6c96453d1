package schedule

import (
	"fmt"
	"testing"
	"time"
)

func benchmarked(deliveries int) *Scheduler[int] {
	l := simple(deliveries, 1, 1)
	return New[int](func(string) Limits { return l }, func() time.Duration { return time.Minute })
}

// BenchmarkDecision: with n destinations that are full and have more waiting, a
// delivery ends at one of them, the next begins there, and another one comes.
func BenchmarkDecision(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		for _, senders := range []int{1, 1000} {
			b.Run(fmt.Sprintf("destinations=%d/senders=%d", n, senders), func(b *testing.B) {
				s := benchmarked(n + 1)
				ds := make([]Destination, n)
				for i := range ds {
					ds[i] = Destination{"smtp", fmt.Sprintf("d%d.example", i)}
				}
				add := func(i int) {
					s.Add(epoch, s.NewMessage(epoch, fmt.Sprint("s", i%senders)), ds[i%n], i)
				}
				for i := range 3 * n {
					add(i)
				}
				for range n {
					if _, _, ok := s.Next(epoch); !ok {
						b.Fatal("nothing may start")
					}
				}
				if _, _, ok := s.Next(epoch); ok {
					b.Fatal("too much may start")
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					s.Done(epoch, ds[i%n], Positive, nil)
					if _, d, ok := s.Next(epoch); !ok || d != ds[i%n] {
						b.Fatal("another one")
					}
					add(i)
				}
			})
		}
	}
}

// BenchmarkMessage: a message comes, starts at once, and ends.
func BenchmarkMessage(b *testing.B) {
	s := benchmarked(100)
	ds := make([]Destination, 1000)
	for i := range ds {
		ds[i] = Destination{"smtp", fmt.Sprintf("d%d.example", i)}
	}
	b.ReportAllocs()
	for i := range b.N {
		s.Add(epoch, s.NewMessage(epoch, ds[i%7].Nexthop), ds[i%1000], i)
		_, d, ok := s.Next(epoch)
		if !ok {
			b.Fatal("nothing may start")
		}
		s.Done(epoch, d, Positive, nil)
	}
}

// BenchmarkList: a message with 100,000 deliveries to destinations of their own.
func BenchmarkList(b *testing.B) {
	const n = 100_000
	ds := make([]Destination, n)
	for i := range ds {
		ds[i] = Destination{"smtp", fmt.Sprintf("d%d.example", i)}
	}
	for range b.N {
		s := benchmarked(100)
		m := s.NewMessage(epoch, "list")
		for i := range ds {
			s.Add(epoch, m, ds[i], i)
		}
		for range ds {
			_, d, _ := s.Next(epoch)
			s.Done(epoch, d, Positive, nil)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/delivery")
}
