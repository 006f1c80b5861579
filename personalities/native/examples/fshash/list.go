package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The list on the output disk: one header block, then the list, padded with zeroes to a whole block. Numbers
// are little-endian.
//
//	0   magic "GRAILFSH"
//	8   length of the list in bytes, 8 bytes
//	16  SHA-256 of the list, 32 bytes
//	48  zeroes up to listBlock
const (
	listMagic = "GRAILFSH"
	listBlock = 4096
)

// disk is what the list is written to.
type disk interface {
	io.WriterAt
	Flush() error
}

// WriteList writes list to d, of size bytes, and returns once it is durable. The header is written last, after
// a flush, so that a header that is there vouches for the list.
func WriteList(d disk, size int64, list []byte) error {
	padded := (len(list) + listBlock - 1) / listBlock * listBlock
	if int64(listBlock+padded) > size {
		return fmt.Errorf("the list has %d bytes, the output disk has room for %d", len(list), size-listBlock)
	}
	body := make([]byte, padded)
	copy(body, list)
	if padded > 0 {
		if _, err := d.WriteAt(body, listBlock); err != nil {
			return err
		}
	}
	if err := d.Flush(); err != nil {
		return err
	}
	header := make([]byte, listBlock)
	copy(header, listMagic)
	binary.LittleEndian.PutUint64(header[8:], uint64(len(list)))
	sum := sha256.Sum256(list)
	copy(header[16:], sum[:])
	if _, err := d.WriteAt(header, 0); err != nil {
		return err
	}
	return d.Flush()
}

// ReadList returns the list on r, of which size bytes exist. Errors: there is no valid list.
func ReadList(r io.ReaderAt, size int64) ([]byte, error) {
	header := make([]byte, listBlock)
	if _, err := r.ReadAt(header, 0); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(header, []byte(listMagic)) {
		return nil, errors.New("no list here: wrong magic")
	}
	n := binary.LittleEndian.Uint64(header[8:])
	if size < listBlock || n > uint64(size-listBlock) {
		return nil, fmt.Errorf("list of %d bytes on a disk of %d", n, size)
	}
	list := make([]byte, n)
	if _, err := r.ReadAt(list, listBlock); err != nil && err != io.EOF {
		return nil, err
	}
	if sha256.Sum256(list) != [32]byte(header[16:48]) {
		return nil, errors.New("list is damaged: wrong checksum")
	}
	return list, nil
}
