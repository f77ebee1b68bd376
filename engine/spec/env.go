package spec

import (
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"
)

// Env is an environment, entries of the form NAME=value. A value may be any bytes but zero; JSON, which has nothing but text, has an
// entry that is no UTF-8 as {"base64": "..."}, so that what is read again is what was written.
type Env []string

// rawEntry is an entry in JSON that is no text.
type rawEntry struct {
	Base64 []byte `json:"base64"`
}

// IsText says whether all entries are UTF-8.
func (e Env) IsText() bool {
	return !slices.ContainsFunc(e, func(entry string) bool { return !utf8.ValidString(entry) })
}

// MarshalJSON implements json.Marshaler.
func (e Env) MarshalJSON() ([]byte, error) {
	if e.IsText() {
		return json.Marshal([]string(e))
	}
	all := make([]any, len(e))
	for i, entry := range e {
		all[i] = entry
		if !utf8.ValidString(entry) {
			all[i] = rawEntry{[]byte(entry)}
		}
	}
	return json.Marshal(all)
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *Env) UnmarshalJSON(text []byte) error {
	var all []json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	*e = nil
	if all != nil {
		*e = make(Env, len(all))
	}
	for i, one := range all {
		var raw rawEntry
		if json.Unmarshal(one, &(*e)[i]) == nil {
			continue
		}
		if err := json.Unmarshal(one, &raw); err != nil {
			return fmt.Errorf("entry %d of the environment: %w", i, err)
		}
		(*e)[i] = string(raw.Base64)
	}
	return nil
}
