package cni

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/cni/builtin"
)

// The annotations by which Kubernetes limits a pod's traffic, in bits a second.
const (
	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"
)

func rates(annotations map[string]string) (builtin.Rates, error) {
	var r builtin.Rates
	for name, rate := range map[string]*uint64{annotationIngress: &r.Ingress, annotationEgress: &r.Egress} {
		text, ok := annotations[name]
		if !ok {
			continue
		}
		n, err := parseQuantity(text)
		if err != nil {
			return r, fmt.Errorf("annotation %s: %w", name, err)
		}
		*rate = n
	}
	return r, nil
}

var suffixes = map[string]float64{
	"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}

// parseQuantity reads a Kubernetes quantity ("10M", "1.5Gi", "1e6") as a whole number, rounded up.
func parseQuantity(s string) (uint64, error) {
	number := strings.TrimRight(s, "mkMGTPEi")
	factor, ok := suffixes[s[len(number):]]
	value, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || strings.Trim(number, "0123456789.eE+-") != "" || value < 0 || value*factor >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a quantity such as 10M or 1Gi: %w", s, errdefs.ErrInvalidArgument)
	}
	return uint64(math.Ceil(value * factor)), nil
}
