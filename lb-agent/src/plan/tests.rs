use lb_common as _;
