package port

import (
	"context"
	"errors"
)

func (s Spec) openSerial(Line) (Port, error) { return nil, errors.ErrUnsupported }

func (s Spec) dial(context.Context, string) (Port, error) { return nil, errors.ErrUnsupported }
