package main

import (
	"archive/tar"
	"fmt"
	"math"
	"math/rand/v2"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The big images have the shape of a language's runtime image: some layers, many small files, a few large ones.
const (
	bigLayers = 8
	bigFiles  = 1_550 // a layer
	bigBytes  = 50 << 20
)

// addBig makes the images for pulling at size: about 400 MB and 12,400 files in 8 layers, in each compression, and the same
// in one layer.
func addBig(l *layout) error {
	for _, compression := range []string{"gzip", "zstd"} {
		var layers []layer
		for n := range bigLayers {
			made, err := l.layer(compression, func(w *tar.Writer) error { return writeBig(w, n) })
			if err != nil {
				return err
			}
			layers = append(layers, made)
		}
		config := ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"/none"}, Labels: map[string]string{"compression": compression}}
		if err := l.add(image{layers: layers, config: config}, "criserver/big:"+compression); err != nil {
			return err
		}
	}
	all, err := l.layer("gzip", func(w *tar.Writer) error {
		for n := range bigLayers {
			if err := writeBig(w, n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	config := ocispec.ImageConfig{Env: []string{searchPath}, Cmd: []string{"/none"}, Labels: map[string]string{"compression": "gzip-one"}}
	return l.add(image{layers: []layer{all}, config: config}, "criserver/big:gzip-one")
}

// writeBig writes layer n: sizes are log-normal, as those of installed files are, and scaled to bigBytes.
func writeBig(w *tar.Writer, n int) error {
	random := rand.New(rand.NewPCG(uint64(n), 42))
	sizes, sum := make([]float64, bigFiles), 0.0
	for i := range sizes {
		sizes[i] = math.Exp(random.NormFloat64()*1.7 + 8.5)
		sum += sizes[i]
	}
	words := makeWords(random)
	const perDir = 40
	for i, size := range sizes {
		dir := fmt.Sprintf("opt/layer%d/d%02d", n, i/perDir)
		if i == 0 {
			for _, parent := range []string{"opt/", fmt.Sprintf("opt/layer%d/", n)} {
				if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: parent, Mode: 0o755, ModTime: epoch}); err != nil {
					return err
				}
			}
		}
		if i%perDir == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: epoch}); err != nil {
				return err
			}
		}
		body := text(random, words, int(size*bigBytes/sum))
		header := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/f%04d", dir, i), Mode: 0o644, Size: int64(len(body)), ModTime: epoch}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := w.Write(body); err != nil {
			return err
		}
	}
	return nil
}

func makeWords(random *rand.Rand) [][]byte {
	words := make([][]byte, 2048)
	for i := range words {
		words[i] = make([]byte, 3+random.IntN(9))
		for j := range words[i] {
			words[i][j] = byte('a' + random.IntN(26))
		}
	}
	return words
}

// text is n bytes that compress about as well as programs and their data do, to a third.
func text(random *rand.Rand, words [][]byte, n int) []byte {
	out := make([]byte, 0, n+16)
	for len(out) < n {
		// Common words are more common, and a few bytes follow no rule.
		out = append(out, words[int(float64(len(words))*math.Pow(random.Float64(), 3))]...)
		out = append(out, ' ')
		if random.IntN(16) == 0 {
			out = append(out, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()))
		}
	}
	return out[:n]
}
