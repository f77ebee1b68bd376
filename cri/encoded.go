package cri

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// itemsField is the number of the field with the items in every response that withItems is for.
const itemsField = 1

// encodeItem encodes an item of a list as it stands in the response: with the tag of the field and its length. Such items
// need only be put one after the other, and are kept by the engine until what they show has changed.
func encodeItem(item proto.Message) ([]byte, error) {
	size := proto.Size(item)
	encoded := make([]byte, 0, protowire.SizeTag(itemsField)+protowire.SizeBytes(size))
	encoded = protowire.AppendTag(encoded, itemsField, protowire.BytesType)
	encoded = protowire.AppendVarint(encoded, uint64(size))
	encoded, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(encoded, item)
	if err != nil {
		return nil, fmt.Errorf("encode an item of a list: %w", err)
	}
	return encoded, nil
}

// withItems gives encoded items to a response whose only field is that of the items. They go where protobuf keeps fields that
// it does not know, which it sends as they are: on the wire there is no difference. The field of the response stays empty, so
// it is only good for being sent.
func withItems[M proto.Message](response M, items [][]byte) M {
	if len(items) > 0 {
		response.ProtoReflect().SetUnknown(bytes.Join(items, nil))
	}
	return response
}

func encodedSize(item []byte) int { return len(item) }
