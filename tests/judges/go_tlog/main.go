// SPDX-License-Identifier: Apache-2.0

// Judges notes, proofs and tiles with Go's own implementation of them (golang.org/x/mod/sumdb).
// Reads a JSON list of questions on stdin, writes a JSON list of answers in the same order.
package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"

	"judge/note"
	"judge/tlog"
)

const height = 8

// A question; byte strings are base64 in JSON.
type question struct {
	Op     string
	Note   []byte
	Vkeys  []string
	Name   string
	Text   string
	Size   int64
	Root   tlog.Hash
	Old    int64
	Before tlog.Hash
	Index  int64
	Leaf   tlog.Hash
	Proof  []tlog.Hash
	Leaves []tlog.Hash
	Path   string
	Tiles  map[string][]byte
}

// An answer: Error is empty where Go accepts.
type answer struct {
	Error    string        `json:"error"`
	Text     string        `json:"text,omitempty"`
	Signers  []string      `json:"signers,omitempty"`
	Unknown  []string      `json:"unknown,omitempty"`
	Vkey     string        `json:"vkey,omitempty"`
	Note     []byte        `json:"note,omitempty"`
	Root     tlog.Hash     `json:"root"`
	Proofs   [][]tlog.Hash `json:"proofs,omitempty"`
	Growth   [][]tlog.Hash `json:"growth,omitempty"`
	Paths    []string      `json:"paths,omitempty"`
	Position []int64       `json:"position,omitempty"`
}

// hashes keeps a tree in memory, in the order in which Go stores one.
type hashes []tlog.Hash

func (stored hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(stored)) {
			return nil, fmt.Errorf("no hash %d", index)
		}
		found[i] = stored[index]
	}
	return found, nil
}

// published is a log as a client sees it: tiles by their tlog-tiles paths, which do not carry the height.
type published map[string][]byte

func (tiles published) Height() int { return height }

func (tiles published) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	found := make([][]byte, len(wanted))
	for i, tile := range wanted {
		data, ok := tiles[shortPath(tile)]
		if !ok {
			return nil, fmt.Errorf("no tile %s", shortPath(tile))
		}
		found[i] = data
	}
	return found, nil
}

func (tiles published) SaveTiles([]tlog.Tile, [][]byte) {}

func shortPath(tile tlog.Tile) string {
	return "tile/" + tile.Path()[len("tile/8/"):]
}

func open(q question) (a answer, err error) {
	var known []note.Verifier
	for _, vkey := range q.Vkeys {
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return a, err
		}
		known = append(known, verifier)
	}
	opened, err := note.Open(q.Note, note.VerifierList(known...))
	if err != nil {
		return a, err
	}
	a.Text = opened.Text
	for _, signature := range opened.Sigs {
		a.Signers = append(a.Signers, signature.Name)
	}
	for _, signature := range opened.UnverifiedSigs {
		a.Unknown = append(a.Unknown, signature.Name)
	}
	return a, nil
}

func sign(q question) (a answer, err error) {
	secret, vkey, err := note.GenerateKey(rand.Reader, q.Name)
	if err != nil {
		return a, err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return a, err
	}
	a.Vkey = vkey
	a.Note, err = note.Sign(&note.Note{Text: q.Text}, signer)
	return a, err
}

// prove builds the tree of the leaves and gives its root and every proof it has.
func prove(q question) (a answer, err error) {
	var stored hashes
	for n, leaf := range q.Leaves {
		more, err := tlog.StoredHashesForRecordHash(int64(n), leaf, stored)
		if err != nil {
			return a, err
		}
		stored = append(stored, more...)
	}
	size := int64(len(q.Leaves))
	if a.Root, err = tlog.TreeHash(size, stored); err != nil {
		return a, err
	}
	for n := int64(0); n < size; n++ {
		proof, err := tlog.ProveRecord(size, n, stored)
		if err != nil {
			return a, err
		}
		growth, err := tlog.ProveTree(size, n+1, stored)
		if err != nil {
			return a, err
		}
		a.Proofs = append(a.Proofs, proof)
		a.Growth = append(a.Growth, growth)
	}
	return a, nil
}

// client does what a client of the log does: it reads tiles, against a root, until it has the leaf proven.
func client(q question) (a answer, err error) {
	tree := tlog.Tree{N: q.Size, Hash: q.Root}
	reader := tlog.TileHashReader(tree, published(q.Tiles))
	proof, err := tlog.ProveRecord(q.Size, q.Index, reader)
	if err != nil {
		return a, err
	}
	a.Proofs = [][]tlog.Hash{proof}
	return a, tlog.CheckRecord(proof, q.Size, q.Root, q.Index, q.Leaf)
}

func grown(q question) (a answer) {
	for _, tile := range tlog.NewTiles(height, q.Old, q.Size) {
		a.Paths = append(a.Paths, shortPath(tile))
	}
	return a
}

func path(q question) (a answer, err error) {
	tile, err := tlog.ParseTilePath(q.Path)
	if err != nil {
		return a, err
	}
	a.Position = []int64{int64(tile.L), tile.N, int64(tile.W)}
	return a, nil
}

func judge(q question) (a answer, err error) {
	switch q.Op {
	case "open":
		return open(q)
	case "sign":
		return sign(q)
	case "inclusion":
		return a, tlog.CheckRecord(q.Proof, q.Size, q.Root, q.Index, q.Leaf)
	case "consistency":
		return a, tlog.CheckTree(q.Proof, q.Size, q.Root, q.Old, q.Before)
	case "prove":
		return prove(q)
	case "client":
		return client(q)
	case "grown":
		return grown(q), nil
	case "path":
		return path(q)
	}
	return a, fmt.Errorf("no such question: %q", q.Op)
}

func main() {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	answers := make([]answer, len(questions))
	for i, q := range questions {
		a, err := judge(q)
		if err != nil {
			a.Error = err.Error()
		}
		answers[i] = a
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
