// Resolves by Go's own resolver, connects, and asks whether TLS is spoken.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	connection, err := net.Dial("tcp", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	answer := []byte{'-'}
	connection.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47})
	connection.Read(answer)
	fmt.Printf("%c\n", answer[0])
}
