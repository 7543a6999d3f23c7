package remote

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"holdfast"
	"holdfast/wire"
)

// MaxDamaged bounds the damaged blocks that Damaged returns. What is beyond is asked for by later runs.
const MaxDamaged = 1 << 16

// Damaged asks which blocks of this machine's group the service knows to be damaged, in the order of their names, and
// whether there are more. A service that is too old to say so knows of none.
func (c *Client) Damaged(ctx context.Context) (all []wire.Damaged, more bool, err error) {
	path := strings.Replace(wire.PathDamaged, "{group}", hex.EncodeToString(c.m.Group[:]), 1)
	for after := (holdfast.Name{}); ; after = all[len(all)-1].Name {
		page := path
		if len(all) > 0 {
			page += "?after=" + after.String()
		}
		b, err := c.call(ctx, http.MethodGet, page, nil, wire.MaxDamagedBody)
		if wire.CodeOf(err) == wire.CodeNotFound {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("ask which blocks are damaged: %w", err)
		}
		part, err := wire.ParseDamaged(b)
		if err == nil && len(part) > 0 && len(all) > 0 && bytes.Compare(part[0].Name[:], after[:]) <= 0 {
			err = fmt.Errorf("it says %s after %s", part[0].Name, after)
		}
		if err != nil {
			return nil, false, fmt.Errorf("ask which blocks are damaged: %w: %w", ErrProtocol, err)
		}
		if len(part) == 0 {
			return all, false, nil
		}
		if all = append(all, part...); len(all) >= MaxDamaged {
			return all[:MaxDamaged], true, nil
		}
	}
}
