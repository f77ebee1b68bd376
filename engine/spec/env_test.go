package spec

import (
	"encoding/json"
	"slices"
	"testing"
)

func FuzzEnv(f *testing.F) {
	f.Add("A=b", "C=\xff\xfe", "")
	f.Add("", `{"base64":"AA=="}`, "\u2028")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		env := Env{a, b, c}
		text, err := json.Marshal(env)
		if err != nil {
			t.Fatal(err)
		}
		var back Env
		if err := json.Unmarshal(text, &back); err != nil || !slices.Equal(back, env) {
			t.Errorf("%q came back as %q, %v", env, back, err)
		}
	})
}

func TestEnvJSON(t *testing.T) {
	for text, want := range map[string]Env{
		`["A=b"]`:                        {"A=b"},
		`["A=b",{"base64":"Qz3/"}]`:      {"A=b", "C=\xff"},
		`[{"base64":"Qz3/"},"\ufffd=x"]`: {"C=\xff", "\ufffd=x"},
		`[]`:                             {},
		`null`:                           nil,
	} {
		var got Env
		if err := json.Unmarshal([]byte(text), &got); err != nil || !slices.Equal(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%s: %q, %v", text, got, err)
		}
		if back, err := json.Marshal(want); err != nil || string(back) != text && !(len(want) > 0 && want[len(want)-1] == "\ufffd=x") {
			t.Errorf("%q: %s, %v", want, back, err)
		}
	}
	for _, text := range []string{`{}`, `["a",1]`, `[{"base64":"!"}]`} {
		var got Env
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s was taken as %q", text, got)
		}
	}
}
