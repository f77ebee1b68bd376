package cri

import (
	"context"
	"net/netip"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateRuntimeConfig implements RuntimeService. Without a pod_cidr it says nothing, which is no error.
func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, r *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	cidrs, err := podCIDRs(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	if err != nil {
		return nil, err
	}
	if len(cidrs) > 0 {
		err = s.engine.SetPodCIDRs(cidrs)
	}
	return &runtime.UpdateRuntimeConfigResponse{}, err
}

// podCIDRs reads one range, or one of each family separated by a comma, as kubelet sends them.
func podCIDRs(text string) ([]netip.Prefix, error) {
	const field = "runtime_config.network_config.pod_cidr"
	if text == "" {
		return nil, nil
	}
	var cidrs []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		cidr, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, invalid(field, "%q is not a range as 10.0.0.0/24", part)
		}
		for _, other := range cidrs {
			if other.Addr().Is4() == cidr.Addr().Is4() {
				return nil, invalid(field, "%q has two ranges of one family", text)
			}
		}
		cidrs = append(cidrs, cidr.Masked())
	}
	return cidrs, nil
}
