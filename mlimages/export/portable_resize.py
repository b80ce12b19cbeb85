"""A resize for runtimes such as OpenVINO, whose antialiased `Resize` differs from ONNX Runtime's.

It applies Pillow's filter as two matrix products. Positions and weights are 32-bit integers: OpenVINO computes in
bfloat16 on processors that support it, in which a position above 256 pixels is not exact. A distance is an integer in
units of 1 / (2 * max(width, target)) of the filter's unit. Sides of up to 32,000 pixels fit into 32 bits.
"""

RESIZE = """
    target_height = Gather(target, row)
    target_width = Gather(target, column)
    planes = Transpose<perm = [0, 3, 1, 2]>(source)
    planes_real = Cast<to = 1>(planes)
    columns_done = pillow.resample_width(planes_real, target_width)
    rows_done = pillow.resample_height(columns_done, target_height)
    levels_out = Cast<to = 2>(rows_done)
    resized = Transpose<perm = [0, 2, 3, 1]>(levels_out)"""

WEIGHT = {
    # 1 - |t| for |t| < 1, times 2 * max(width, target)
    "bilinear": """
    reach = Mul(span, two)
    triangle = Sub(reach, distance)
    weight = Max(triangle, none)""",
    # Keys' cubic with a = -0.5, times 2^13, of u = 1024 |t|
    "bicubic": """
    reach = Mul(span, four)
    near_or_end = Min(distance, reach)
    u_span = Mul(near_or_end, u_half)
    u = Div(u_span, span)
    u_square = Mul(u, u)
    u_part = Div(u_square, sixteen)
    u_cube = Mul(u_part, u)
    cube = Div(u_cube, cube_unit)
    square_five = Mul(u_square, five)
    square = Div(square_five, square_unit)
    cube_three = Mul(cube, three)
    near_tail = Sub(cube_three, square)
    near = Add(near_tail, unit)
    linear = Mul(u, linear_unit)
    far_head = Sub(square, cube)
    far_tail = Sub(far_head, linear)
    far_unit = Mul(unit, two)
    far = Add(far_tail, far_unit)
    is_near = Less(u, u_unit)
    weight = Where(is_near, near, far)""",
}

FUNCTION = """
    <domain: "pillow", opset_import: ["": OPSET, "pillow": 1]>
    resample_width (x, target) => (y) {
      none = Constant<value = int32 {0}>()
      one = Constant<value = int32 {1}>()
      two = Constant<value = int32 {2}>()
      three = Constant<value = int32 {3}>()
      four = Constant<value = int32 {4}>()
      five = Constant<value = int32 {5}>()
      unit = Constant<value = int32 {8192}>()
      u_unit = Constant<value = int32 {1024}>()
      u_half = Constant<value = int32 {512}>()
      cube_unit = Constant<value = int32 {16384}>()
      square_unit = Constant<value = int32 {256}>()
      linear_unit = Constant<value = int32 {32}>()
      sixteen = Constant<value = int32 {16}>()
      fixed_point = Constant<value = int32 {16384}>()
      fixed_point_real = Constant<value = float {16384.0}>()
      half_real = Constant<value = float {0.5}>()
      zero_real = Constant<value = float {0.0}>()
      max_level = Constant<value = float {255.0}>()
      start = Constant<value = int64 {0}>()
      step = Constant<value = int64 {1}>()
      last = Constant<value = int64[1] {-1}>()
      width_shape = Shape<start = 3, end = 4>(x)
      width = Squeeze(width_shape)
      width_int = Cast<to = 6>(width)
      target_int = Cast<to = 6>(target)
      span = Max(width_int, target_int)
      out_indices = Range(start, target, step)
      out_indices_int = Cast<to = 6>(out_indices)
      out_column = Unsqueeze(out_indices_int, last)
      out_twice = Mul(out_column, two)
      out_odd = Add(out_twice, one)
      center = Mul(out_odd, width_int)
      in_indices = Range(start, width, step)
      in_indices_int = Cast<to = 6>(in_indices)
      in_twice = Mul(in_indices_int, two)
      in_odd = Add(in_twice, one)
      position = Mul(in_odd, target_int)
      offset = Sub(position, center)
      distance = Abs(offset)
      WEIGHT
      total = ReduceSum<keepdims = 1>(weight, last)
      half_total = Div(total, two)
      scaled = Mul(weight, fixed_point)
      rounded = Add(scaled, half_total)
      fixed = Div(rounded, total)
      fixed_real = Cast<to = 1>(fixed)
      weights = Transpose<perm = [1, 0]>(fixed_real)
      sums = MatMul(x, weights)
      levels = Div(sums, fixed_point_real)
      levels_half = Add(levels, half_real)
      levels_rounded = Floor(levels_half)
      levels_clipped = Max(levels_rounded, zero_real)
      y = Min(levels_clipped, max_level)
    }"""
