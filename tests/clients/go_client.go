// An HTTP client in Go, as an agent would write one. Arguments: the URL, and the version of HTTP that is to be spoken.
// Prints `ok`.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

var url, version = os.Args[1], os.Args[2]

func check(is bool, what ...any) {
	if !is {
		fmt.Println(what...)
		os.Exit(1)
	}
}

func ask(client *http.Client, method, path, kind, body string) (*http.Response, string) {
	request, err := http.NewRequest(method, url+path, bytes.NewBufferString(body))
	check(err == nil, err)
	if body != "" {
		request.Header.Set("Content-Type", kind)
	}
	request.Header.Set("Authorization", "Bearer mine")
	response, err := client.Do(request)
	check(err == nil, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	check(err == nil, err)
	check(response.Proto == version, path, "came by", response.Proto)
	return response, string(text)
}

func main() {
	client := &http.Client{Timeout: 30 * time.Second}
	if version == "HTTP/1.1" {
		// How net/http is told not to offer HTTP/2.
		client.Transport = &http.Transport{TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
	}

	sent, _ := json.Marshal(map[string]any{"mail": "someone@example.com", "amount": 7})
	response, text := ask(client, "POST", "/body?type=application/json", "application/json", string(sent))
	var masked struct {
		Mail   string
		Amount int
	}
	err := json.Unmarshal([]byte(text), &masked)
	check(err == nil && masked.Mail == "[redacted]" && masked.Amount == 7, response.Status, text)

	response, text = ask(client, "DELETE", "/admin/users/7", "", "")
	var problem struct {
		Rule   string
		Status int
	}
	err = json.Unmarshal([]byte(text), &problem)
	kind := response.Header.Get("Content-Type")
	check(err == nil && response.StatusCode == 403 && strings.HasPrefix(kind, "application/problem+json"), kind, text)
	check(problem.Rule == "no administration" && problem.Status == 403, text)

	// Several at once, after the refusal.
	var all sync.WaitGroup
	for n := 0; n < 20; n++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			path := fmt.Sprintf("/echo?n=%d", n)
			_, text := ask(client, "GET", path, "", "")
			var seen struct{ Path string }
			check(json.Unmarshal([]byte(text), &seen) == nil && seen.Path == path, text)
		}(n)
	}
	all.Wait()
	fmt.Println("ok")
}
