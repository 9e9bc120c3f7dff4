-- A small S3 on top of a directory tree, for tests and measurements. See fast_s3.py.
--
-- Every request is decided in nginx's access phase. GET and HEAD of an object then fall through to nginx's static
-- handler (sendfile, ranges); everything else is answered here. Object BUCKET/KEY is the file DATA/BUCKET/KEY; the
-- object "dir/" is the file DATA/BUCKET/dir/<MARKER>. Signatures are not checked.
--
-- Listings: the sorted names of a directory are kept per worker and are good while the directory's mtime stays, so a
-- page costs one binary search and one statx per entry, whatever the size of the directory.

local ffi = require "ffi"
local bit = require "bit"
local C = ffi.C

ffi.cdef [[
struct fs3_ts { int64_t sec; uint32_t nsec; int32_t pad; };
struct fs3_statx {
  uint32_t mask, blksize; uint64_t attributes; uint32_t nlink, uid, gid; uint16_t mode, pad1;
  uint64_t ino, size, blocks, attributes_mask; struct fs3_ts atime, btime, ctime, mtime;
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor; uint64_t spare[14];
};
int statx(int dirfd, const char *path, int flags, unsigned mask, struct fs3_statx *out);
struct fs3_dirent { uint64_t ino; int64_t off; uint16_t reclen; uint8_t type; char name[256]; };
void *opendir(const char *path);
struct fs3_dirent *readdir(void *dir);
int closedir(void *dir);
int mkdir(const char *path, unsigned mode);
int rmdir(const char *path);
int link(const char *from, const char *to);
int kill(int pid, int sig);
int getppid(void);
int setxattr(const char *path, const char *name, const char *value, size_t size, int flags);
ssize_t getxattr(const char *path, const char *name, char *value, size_t size);
int open(const char *path, int flags, ...);
int close(int fd);
ssize_t copy_file_range(int in, int64_t *in_offset, int out, int64_t *out_offset, size_t size, unsigned flags);
]]

local AT_FDCWD, STATX_BASIC = -100, 0x7ff
local O_RDONLY, O_WRONLY, O_CREAT, O_TRUNC, O_CLOEXEC = 0, 1, 64, 512, 524288
local MARKER = ".fast-s3-directory"
local XATTR = "user.fast_s3"
local XMLNS = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
local STATUS = {
    NoSuchKey = 404, NoSuchBucket = 404, NoSuchUpload = 404, PreconditionFailed = 412, InvalidPart = 400,
    BucketNotEmpty = 409, BucketAlreadyOwnedByYou = 409, NotImplemented = 501, InternalError = 500,
    MethodNotAllowed = 405, InvalidArgument = 400, MalformedXML = 400, SlowDown = 503, ServiceUnavailable = 503,
    BadDigest = 400, InvalidPartOrder = 400, EntityTooSmall = 400, KeyTooLongError = 400, MetadataTooLarge = 400,
    InvalidRequest = 400,
}
local MESSAGE = {
    NoSuchKey = "The specified key does not exist.", NoSuchBucket = "The specified bucket does not exist",
    PreconditionFailed = "At least one of the pre-conditions you specified did not hold",
    SlowDown = "Please reduce your request rate.",
}

local M = {}
local data, scratch, parent
local st = ffi.new("struct fs3_statx")
local xattr_buffer = ffi.new("char[16384]")
local MOST_METADATA, LEAST_PART = 2048, 5 * 1048576

function M.configure(data_, scratch_, parent_)
    data, scratch, parent = data_, scratch_, parent_
end

-- The server must not outlive the process that started it.
function M.watch_parent()
    math.randomseed(ngx.worker.pid())
    ngx.timer.every(2, function()
        if C.kill(parent, 0) ~= 0 then C.kill(C.getppid(), 15) end
    end)
end

-- files -------------------------------------------------------------------------------------------------------------

local function stat(path)
    if C.statx(AT_FDCWD, path, 0, STATX_BASIC, st) ~= 0 then return nil end
    local kind = bit.band(st.mode, 0xf000)
    local sec, nsec, size = tonumber(st.mtime.sec), tonumber(st.mtime.nsec), tonumber(st.size)
    return {
        dir = kind == 0x4000, file = kind == 0x8000, size = size, sec = sec, nsec = nsec,
        etag = string.format('"%x%08x-%x%x"', sec, nsec, tonumber(st.ino), size),
    }
end

local function make_parents(path)
    local at = #data + 1
    while true do
        at = path:find("/", at + 1, true)
        if not at then return end
        C.mkdir(path:sub(1, at - 1), 493)
    end
end

-- Directories without objects do not exist in S3: they go with their last object.
local function prune(path, bucket_dir)
    while true do
        path = path:match("^(.*)/[^/]*$")
        if not path or #path <= #bucket_dir or C.rmdir(path) ~= 0 then return end
    end
end

-- Copies the pieces {path, offset or nil, length or nil} one after another to the new file TARGET, in the kernel.
local function copy_files(pieces, target)
    local flags = bit.bor(O_WRONLY, O_CREAT, O_TRUNC, O_CLOEXEC)
    local out = C.open(target, flags, ffi.cast("int", 420))
    local ok = out >= 0
    for _, piece in ipairs(pieces) do
        local input = ok and C.open(piece[1], bit.bor(O_RDONLY, O_CLOEXEC)) or -1
        ok = input >= 0
        if not ok then break end
        local at, left = ffi.new("int64_t[1]", piece[2] or 0), piece[3] or math.huge
        while left > 0 do
            local done = tonumber(C.copy_file_range(input, at, out, nil, math.min(left, 2 ^ 30), 0))
            if done <= 0 then
                ok = done == 0 and left == math.huge
                break
            end
            left = left - done
        end
        C.close(input)
        if not ok then break end
    end
    if out >= 0 then C.close(out) end
    return ok
end

local function set_metadata(path, text)
    if text ~= "" then C.setxattr(path, XATTR, text, #text, 0) end
end

local function get_metadata(path)
    local size = C.getxattr(path, XATTR, xattr_buffer, 16384)
    return size > 0 and ffi.string(xattr_buffer, size) or ""
end

local function install(from, path)
    for _ = 1, 100 do -- a concurrent delete may prune the directory under us
        make_parents(path)
        local ok, why, code = os.rename(from, path)
        if ok then return true end
        if code == 18 then -- another file system
            if not copy_files({ { from } }, path .. ".fast-s3-part") then return false, why end
            set_metadata(path .. ".fast-s3-part", get_metadata(from))
            os.remove(from)
            from = path .. ".fast-s3-part"
        elseif code ~= 2 then
            return false, why, code
        end
    end
    return false, "gave up"
end

local serial = 0
local function temporary()
    serial = serial + 1
    return string.format("%s/tmp/%d-%d", scratch, ngx.worker.pid(), serial)
end

local function write_temporary(content)
    local path = temporary()
    local file = assert(io.open(path, "wb"))
    file:write(content)
    file:close()
    return path
end

local function read_all(path)
    local file = assert(io.open(path, "rb"))
    local content = file:read("*a")
    file:close()
    return content
end

-- answers -----------------------------------------------------------------------------------------------------------

local ENTITY = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["\r"] = "&#13;", ["\n"] = "&#10;",
    ["\t"] = "&#9;" }
local function xml(text)
    if not text:find('[&<>"%c]') then return text end
    return (text:gsub('[&<>"%c]', function(c) return ENTITY[c] or string.format("&#%d;", c:byte()) end))
end

local function url_encoded(text)
    return (text:gsub("[^%w%-%._~/]", function(c) return string.format("%%%02X", c:byte()) end))
end

local function answer(status, body, kind)
    ngx.status = status
    ngx.ctx.answered = true
    ngx.req.clear_header("If-None-Match") -- else nginx compares the ETag of the answer with them
    ngx.req.clear_header("If-Match")
    if body then
        ngx.header["Content-Type"] = kind or "application/xml"
        ngx.header["Content-Length"] = #body
        if ngx.req.get_method() == "HEAD" then ngx.send_headers() else ngx.print(body) end
    else
        if status ~= 204 then ngx.header["Content-Length"] = 0 end
        ngx.send_headers()
    end
    return ngx.exit(200) -- the headers are out: this only ends the request before the static handler
end

local function fail(code, status)
    ngx.req.discard_body()
    return answer(status or STATUS[code], '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>' .. code .. "</Code><Message>"
        .. (MESSAGE[code] or code) .. "</Message><Resource>" .. xml(ngx.var.uri) .. "</Resource><RequestId>"
        .. string.format("%016X", math.random(2 ^ 31)) .. "</RequestId></Error>")
end

local function document(name, ...)
    return answer(200, '<?xml version="1.0" encoding="UTF-8"?>\n<' .. name .. XMLNS .. ">" .. table.concat({ ... })
        .. "</" .. name .. ">")
end

local function iso_time(sec, nsec)
    return os.date("!%Y-%m-%dT%H:%M:%S", sec) .. string.format(".%03dZ", math.floor(nsec / 1e6))
end

-- listings ----------------------------------------------------------------------------------------------------------

local cache, cached_names = {}, 0

-- Sorted names in DIR (with its final slash); directories carry a final slash, the marker object is "".
local function names_in(dir)
    local before = stat(dir)
    if not before or not before.dir then return {} end
    local held = cache[dir]
    if held and held.sec == before.sec and held.nsec == before.nsec then return held.names end
    local handle = C.opendir(dir)
    if handle == nil then return {} end
    local names, count = {}, 0
    while true do
        local entry = C.readdir(handle)
        if entry == nil then break end
        local name, kind = ffi.string(entry.name), entry.type
        if name ~= "." and name ~= ".." and not name:find("%.fast%-s3%-part$") then
            if kind == 4 or (kind ~= 8 and (stat(dir .. name) or {}).dir) then name = name .. "/" end
            if name == MARKER then name = "" end
            count = count + 1
            names[count] = name
        end
    end
    C.closedir(handle)
    table.sort(names)
    if held then cached_names = cached_names - #held.names end
    cache[dir] = nil
    ngx.update_time()
    -- A directory changed within one clock tick of the scan may change again without a new mtime.
    if ngx.now() - (before.sec + before.nsec / 1e9) > 0.05 then
        if cached_names + count > 2000000 then cache, cached_names = {}, 0 end
        cache[dir] = { sec = before.sec, nsec = before.nsec, names = names }
        cached_names = cached_names + count
    end
    return names
end

-- Index of the first name that is > VALUE (or >= it, if OR_EQUAL).
local function first_after(names, value, or_equal)
    local low, high = 1, #names + 1
    while low < high do
        local middle = math.floor((low + high) / 2)
        if names[middle] > value or (or_equal and names[middle] == value) then
            high = middle
        else
            low = middle + 1
        end
    end
    return low
end

local function starts(text, prefix) return text:sub(1, #prefix) == prefix end

-- Calls EMIT(key, path or nil for a common prefix) for the keys under KEYS (key of directory DIR) that start with
-- KEYS .. PREFIX and come after AFTER, in order; EMIT returns true to stop.
local function walk(dir, keys, prefix, after, delimited, emit)
    local names = names_in(dir)
    local from = prefix == "" and 1 or first_after(names, prefix, true)
    if after >= keys then
        if not starts(after, keys) then return false end
        local rest = after:sub(#keys + 1)
        local next_one = first_after(names, rest)
        local holder = names[next_one - 1]
        if holder and holder:sub(-1) == "/" and starts(rest, holder) and not (delimited and rest == holder) then
            next_one = next_one - 1
        end
        from = math.max(from, next_one)
    end
    for i = from, #names do
        local name = names[i]
        if not starts(name, prefix) then break end
        if name:sub(-1) ~= "/" then
            if emit(keys .. name, dir .. (name == "" and MARKER or name)) then return true end
        elseif delimited then
            if emit(keys .. name, nil) then return true end
        elseif walk(dir .. name, keys .. name, "", after, false, emit) then
            return true
        end
    end
    return false
end

local function list_objects(bucket, args)
    local v2 = args["list-type"] == "2"
    local delimiter, prefix = args.delimiter or "", args.prefix or ""
    if delimiter == true then delimiter = "" end
    if prefix == true then prefix = "" end
    if delimiter ~= "" and delimiter ~= "/" then return fail("NotImplemented") end
    local after = v2 and args["start-after"] or args.marker or ""
    local token = v2 and args["continuation-token"]
    if token and token ~= true then
        local decoded = ngx.decode_base64(token)
        if not decoded then return fail("InvalidArgument") end
        after = decoded
    end
    if after == true then after = "" end
    local encode = args["encoding-type"] == "url" and url_encoded or xml
    local limit = math.min(tonumber(args["max-keys"]) or 1000, 1000)

    local out, n, count, last, truncated = {}, 0, 0, after, false
    local function emit(key, path)
        if count >= limit then
            truncated = limit > 0
            return true
        end
        local entry
        if path then
            entry = stat(path)
            if not entry then return false end -- deleted meanwhile
        end
        count, last = count + 1, key
        if path then
            out[n + 1], out[n + 2] = "<Contents><Key>", encode(key)
            out[n + 3], out[n + 4] = "</Key><LastModified>", iso_time(entry.sec, entry.nsec)
            out[n + 5], out[n + 6] = "</LastModified><ETag>&quot;", entry.etag:sub(2, -2)
            out[n + 7], out[n + 8] = "&quot;</ETag><Size>", string.format("%d", entry.size)
            out[n + 9] = "</Size><StorageClass>STANDARD</StorageClass></Contents>"
            n = n + 9
        else
            out[n + 1], out[n + 2], out[n + 3] = "<CommonPrefixes><Prefix>", encode(key), "</Prefix></CommonPrefixes>"
            n = n + 3
        end
        return false
    end
    local parent_key = prefix:match("^(.*/)") or ""
    walk(data .. "/" .. bucket .. "/" .. parent_key, parent_key, prefix:sub(#parent_key + 1), after, delimiter ~= "", emit)

    local head = { "<Name>", xml(bucket), "</Name><Prefix>", encode(prefix), "</Prefix><MaxKeys>", tostring(limit),
        "</MaxKeys><IsTruncated>", tostring(truncated), "</IsTruncated>" }
    if delimiter ~= "" then head[#head + 1] = "<Delimiter>/</Delimiter>" end
    if encode == url_encoded then head[#head + 1] = "<EncodingType>url</EncodingType>" end
    if v2 then
        head[#head + 1] = "<KeyCount>" .. count .. "</KeyCount>"
        if type(token) == "string" then head[#head + 1] = "<ContinuationToken>" .. xml(token) .. "</ContinuationToken>" end
        if type(args["start-after"]) == "string" then
            head[#head + 1] = "<StartAfter>" .. encode(args["start-after"]) .. "</StartAfter>"
        end
        if truncated then
            head[#head + 1] = "<NextContinuationToken>" .. ngx.encode_base64(last) .. "</NextContinuationToken>"
        end
    else
        head[#head + 1] = "<Marker>" .. encode(type(args.marker) == "string" and args.marker or "") .. "</Marker>"
        if truncated then head[#head + 1] = "<NextMarker>" .. encode(last) .. "</NextMarker>" end
    end
    return document("ListBucketResult", table.concat(head), table.concat(out))
end

local function list_buckets()
    local out = {}
    for _, name in ipairs(names_in(data .. "/")) do
        if name:sub(-1) == "/" then
            local entry = stat(data .. "/" .. name)
            out[#out + 1] = "<Bucket><Name>" .. xml(name:sub(1, -2)) .. "</Name><CreationDate>"
                .. iso_time(entry.sec, entry.nsec) .. "</CreationDate></Bucket>"
        end
    end
    return document("ListAllMyBucketsResult", "<Owner><ID>owner</ID></Owner><Buckets>", table.concat(out), "</Buckets>")
end

-- conditions, metadata ----------------------------------------------------------------------------------------------

local function matches(header, etag)
    if type(header) == "table" then header = table.concat(header, ",") end
    if header == "*" then return true end
    local bare = etag:gsub('"', "")
    for candidate in header:gmatch("[^,%s]+") do
        if candidate:gsub('^W/', ""):gsub('"', "") == bare then return true end
    end
    return false
end

local function metadata_text(headers)
    local lines = {}
    for name, value in pairs(headers) do
        if type(value) == "table" then value = table.concat(value, ",") end
        if name:find("^x%-amz%-meta%-") or name == "content-type" or name == "content-encoding"
            or name == "cache-control" or name == "content-disposition" then
            value = value:gsub("aws%-chunked,?%s*", "")
            if value ~= "" then lines[#lines + 1] = name .. "\t" .. value end
        end
    end
    table.sort(lines)
    return table.concat(lines, "\n")
end

-- bodies ------------------------------------------------------------------------------------------------------------

-- x-amz-content-sha256: STREAMING-...: the body is cut in chunks, each "SIZE;signature\r\nBYTES\r\n".
local function decode_aws_chunks(body)
    local out, at = {}, 1
    while true do
        local first, last, size = body:find("^(%x+)[^\r\n]*\r\n", at)
        if not first then break end
        size = tonumber(size, 16)
        if size == 0 then break end
        out[#out + 1] = body:sub(last + 1, last + size)
        at = last + size + 3
    end
    return table.concat(out)
end

-- The request body as a temporary file that may be renamed into place.
local function body_file()
    ngx.req.read_body()
    local path = ngx.req.get_body_file()
    local sha = ngx.var.http_x_amz_content_sha256
    if sha and sha:find("^STREAMING%-") then
        return write_temporary(decode_aws_chunks(path and read_all(path) or ngx.req.get_body_data() or ""))
    end
    return path or write_temporary(ngx.req.get_body_data() or "")
end

local function body_text()
    ngx.req.read_body()
    local path = ngx.req.get_body_file()
    return path and read_all(path) or ngx.req.get_body_data() or ""
end

-- objects -----------------------------------------------------------------------------------------------------------

local function object_path(bucket, key)
    return data .. "/" .. bucket .. "/" .. key .. (key:sub(-1) == "/" and MARKER or "")
end

local function get_object(path)
    local entry = stat(path)
    if not entry or not entry.file then return fail("NoSuchKey") end
    local var = ngx.var
    local condition = var.http_if_match
    if condition then
        if not matches(condition, entry.etag) then return fail("PreconditionFailed") end
        ngx.req.clear_header("If-Match")
    end
    condition = var.http_if_none_match
    if condition and matches(condition, entry.etag) then
        ngx.header["ETag"] = entry.etag
        ngx.ctx.answered = true
        return ngx.exit(304)
    end
    ngx.ctx.etag, ngx.ctx.path = entry.etag, path
    if path:sub(-#MARKER) == MARKER then return ngx.req.set_uri(ngx.var.uri .. MARKER, false, true) end
end

-- The error code that a condition on the object to be written asks for, or nil.
local function forbidden_by_condition(path)
    local if_none, if_match = ngx.var.http_if_none_match, ngx.var.http_if_match
    if not if_none and not if_match then return nil end
    local entry = stat(path)
    local exists = entry and entry.file
    if if_none and exists and matches(if_none, entry.etag) then return "PreconditionFailed" end
    if if_match and not exists then return "NoSuchKey" end
    return if_match and not matches(if_match, entry.etag) and "PreconditionFailed" or nil
end

local ENAMETOOLONG = 36

-- Puts the file FROM in place, if the request's condition holds at that moment; returns its entry, or nil and an error
-- code. The workers exclude each other, so that of two conditional writes one fails.
local function store(from, path, metadata)
    set_metadata(from, metadata)
    local locks = ngx.shared.locks
    while not locks:add(path, true, 5) do ngx.sleep(0.001) end
    local code, entry = forbidden_by_condition(path), nil
    if not code then
        local ok, why, number = install(from, path)
        if ok then
            entry = stat(path)
        else
            ngx.log(ngx.ERR, "cannot store ", path, ": ", why)
            code = number == ENAMETOOLONG and "KeyTooLongError" or "InternalError"
        end
    end
    locks:delete(path)
    if not entry then os.remove(from) end
    return entry, code
end

-- The bucket and key that x-amz-copy-source names, as a path and its entry; or nil and an error code.
local function copy_source(header)
    local name = ngx.unescape_uri((header:gsub("%+", "%%2B"):gsub("^/", ""):gsub("%?.*$", "")))
    local bucket, key = name:match("^([^/]+)/(.+)$")
    local path = bucket and object_path(bucket, key)
    local entry = path and stat(path)
    if not entry or not entry.file then return nil, "NoSuchKey" end
    local expected = ngx.var.http_x_amz_copy_source_if_match
    if expected and not matches(expected, entry.etag) then return nil, "PreconditionFailed" end
    return path, entry
end

local function copy_object(bucket, key, header)
    local from, entry = copy_source(header)
    if not from then return fail(entry) end
    local replace = ngx.var.http_x_amz_metadata_directive == "REPLACE"
    local path = object_path(bucket, key)
    if path == from and not replace then return fail("InvalidRequest") end
    if entry.size > 5 * 2 ^ 30 then return fail("InvalidRequest") end
    local metadata = replace and metadata_text(ngx.req.get_headers(200)) or get_metadata(from)
    local new = temporary()
    if not copy_files({ { from } }, new) then return fail("InternalError") end
    local copied, code = store(new, path, metadata)
    if not copied then return fail(code) end
    return document("CopyObjectResult", "<LastModified>", iso_time(copied.sec, copied.nsec), "</LastModified><ETag>",
        xml(copied.etag), "</ETag>")
end

local function put_object(bucket, key)
    local code = forbidden_by_condition(object_path(bucket, key))
    if code then return fail(code) end
    local source = ngx.var.http_x_amz_copy_source
    if source then return copy_object(bucket, key, source) end
    local metadata = metadata_text(ngx.req.get_headers(200))
    if #metadata > MOST_METADATA + 1024 then return fail("MetadataTooLarge") end
    local entry
    entry, code = store(body_file(), object_path(bucket, key), metadata)
    if not entry then return fail(code) end
    ngx.header["ETag"] = entry.etag
    return answer(200)
end

local function remove_object(bucket, key)
    local path = object_path(bucket, key)
    os.remove(path) -- of a directory it fails unless empty, and those are pruned anyway
    prune(path, data .. "/" .. bucket)
end

local UNXML = { amp = "&", lt = "<", gt = ">", quot = '"', apos = "'" }
local function delete_objects(bucket)
    local body, out = body_text(), {}
    local quiet = body:find("<Quiet>true</Quiet>", 1, true)
    for key in body:gmatch("<Key>(.-)</Key>") do
        local plain = key:gsub("&#(x?)(%x+);", function(hex, code) return string.char(tonumber(code, hex == "x" and 16 or 10)) end)
        plain = plain:gsub("&(%a+);", UNXML)
        remove_object(bucket, plain)
        if not quiet then out[#out + 1] = "<Deleted><Key>" .. key .. "</Key></Deleted>" end
    end
    return document("DeleteResult", table.concat(out))
end

-- multipart ---------------------------------------------------------------------------------------------------------

local function upload_dir(id)
    if type(id) ~= "string" or not id:find("^%w+$") then return nil end
    local dir = scratch .. "/uploads/" .. id
    return stat(dir) and dir or nil
end

local function drop_upload(dir)
    for _, name in ipairs(names_in(dir .. "/")) do os.remove(dir .. "/" .. name) end
    C.rmdir(dir)
end

local function start_upload(bucket, key)
    serial = serial + 1
    local id = string.format("u%dx%dx%d", ngx.worker.pid(), serial, math.random(2 ^ 30))
    local dir = scratch .. "/uploads/" .. id
    C.mkdir(dir, 448)
    os.rename(write_temporary(metadata_text(ngx.req.get_headers(200))), dir .. "/metadata")
    os.rename(write_temporary(bucket .. "/" .. key), dir .. "/key")
    return document("InitiateMultipartUploadResult", "<Bucket>", xml(bucket), "</Bucket><Key>", xml(key),
        "</Key><UploadId>", id, "</UploadId>")
end

-- All open uploads of a bucket in one page: tests have few.
local function list_uploads(bucket, prefix)
    local out = {}
    for _, id in ipairs(names_in(scratch .. "/uploads/")) do
        local file = io.open(scratch .. "/uploads/" .. id .. "key", "rb")
        local name = file and file:read("*a") or ""
        if file then file:close() end
        if starts(name, bucket .. "/" .. prefix) then
            local entry = stat(scratch .. "/uploads/" .. id .. "key")
            out[#out + 1] = "<Upload><Key>" .. xml(name:sub(#bucket + 2)) .. "</Key><UploadId>" .. id:sub(1, -2)
                .. "</UploadId><Initiated>" .. iso_time(entry.sec, entry.nsec) .. "</Initiated></Upload>"
        end
    end
    return document("ListMultipartUploadsResult", "<Bucket>", xml(bucket), "</Bucket><IsTruncated>false</IsTruncated>",
        table.concat(out))
end

local function put_part(args)
    local dir, number = upload_dir(args.uploadId), tonumber(args.partNumber)
    if not dir then return fail("NoSuchUpload") end
    if not number or number < 1 or number > 10000 then return fail("InvalidArgument") end
    local header = ngx.var.http_x_amz_copy_source
    local from
    if header then
        local source, entry = copy_source(header)
        if not source then return fail(entry) end
        local first, last = (ngx.var.http_x_amz_copy_source_range or ""):match("^bytes=(%d+)%-(%d+)$")
        if first and tonumber(last) >= entry.size then return fail("InvalidArgument") end
        from = temporary()
        local piece = { source, tonumber(first), first and tonumber(last) - tonumber(first) + 1 }
        if not copy_files({ piece }, from) then return fail("InternalError") end
    else
        from = body_file()
    end
    local path = dir .. "/" .. string.format("%05d", number)
    if not os.rename(from, path) then -- it was aborted or completed meanwhile
        os.remove(from)
        return fail("NoSuchUpload")
    end
    local entry = stat(path)
    if header then return document("CopyPartResult", "<ETag>", xml(entry.etag), "</ETag>") end
    ngx.header["ETag"] = entry.etag
    return answer(200)
end

-- The pieces that a CompleteMultipartUpload document names; or nil and an error code.
local function parts_of(dir, body)
    local pieces, previous, small = {}, 0, false
    for part in body:gmatch("<Part>(.-)</Part>") do
        local number = tonumber(part:match("<PartNumber>%s*(%d+)%s*</PartNumber>"))
        local etag = (part:match("<ETag>%s*(.-)%s*</ETag>") or ""):gsub("&quot;", '"'):gsub("&#34;", '"')
        local path = dir .. "/" .. string.format("%05d", number or 0)
        local entry = number and stat(path)
        if not entry or not matches(etag, entry.etag) then return nil, "InvalidPart" end
        if number <= previous then return nil, "InvalidPartOrder" end
        if small then return nil, "EntityTooSmall" end
        previous, small = number, entry.size < LEAST_PART
        pieces[#pieces + 1] = { path }
    end
    if #pieces == 0 then return nil, "MalformedXML" end
    return pieces
end

local function complete_upload(bucket, key, id)
    local dir, path = upload_dir(id), object_path(bucket, key)
    if not dir then return fail("NoSuchUpload") end
    local body = body_text()
    local pieces, code = parts_of(dir, body)
    code = code or forbidden_by_condition(path)
    if code then return fail(code) end
    local from = temporary()
    if #pieces == 1 then
        C.link(pieces[1][1], from)
    elseif not copy_files(pieces, from) then
        return fail("InternalError")
    end
    local entry
    entry, code = store(from, path, read_all(dir .. "/metadata"))
    if not entry then return fail(code) end
    drop_upload(dir)
    return document("CompleteMultipartUploadResult", "<Bucket>", xml(bucket), "</Bucket><Key>", xml(key),
        "</Key><ETag>", xml(entry.etag), "</ETag>")
end

-- requests ----------------------------------------------------------------------------------------------------------

local control = ngx.shared.control

-- Returns false if the request was answered here (or its connection reset) on purpose.
local function inject()
    local latency_ms = control:get("latency_ms")
    if latency_ms and latency_ms > 0 then ngx.sleep(latency_ms / 1000) end
    local rate = control:get("reset_rate")
    if rate and rate > 0 and math.random() < rate then
        control:incr("injected_resets", 1, 0)
        ngx.exit(444)
        return false
    end
    rate = control:get("error_rate")
    if rate and rate > 0 and math.random() < rate then
        control:incr("injected_errors", 1, 0)
        fail("SlowDown")
        return false
    end
    rate = control:get("rate_bytes_s")
    if rate and rate > 0 then ngx.var.limit_rate = rate end
    return true
end

local function serve_bucket(bucket, method, args)
    local dir = data .. "/" .. bucket
    local entry = stat(dir)
    if method == "PUT" then
        if entry then return fail("BucketAlreadyOwnedByYou") end
        C.mkdir(dir, 493)
        return answer(200)
    end
    if not entry or not entry.dir then return fail("NoSuchBucket") end
    if method == "HEAD" then return answer(200) end
    if method == "DELETE" then
        if C.rmdir(dir) ~= 0 then return fail("BucketNotEmpty") end
        return answer(204)
    end
    if method == "POST" and args.delete then return delete_objects(bucket) end
    if method ~= "GET" then return fail("MethodNotAllowed") end
    if args.location then return document("LocationConstraint", "") end
    if args.versioning then return document("VersioningConfiguration", "") end
    if args.uploads then return list_uploads(bucket, type(args.prefix) == "string" and args.prefix or "") end
    control:incr("lists", 1, 0)
    return list_objects(bucket, args)
end

-- Keys that are no paths would lead to other files.
local function is_path(key)
    return not ("/" .. key):find("//", 1, true) and not ("/" .. key .. "/"):find("/%.%.?/")
end

local function serve_object(bucket, key, method, args)
    if not is_path(key) then return fail((method == "PUT" or method == "POST") and "InvalidArgument" or "NoSuchKey") end
    local path = object_path(bucket, key)
    if method == "GET" or method == "HEAD" then
        local found = stat(data .. "/" .. bucket)
        if not found then return fail("NoSuchBucket") end
        return get_object(path)
    end
    if not stat(data .. "/" .. bucket) then return fail("NoSuchBucket") end
    if method == "PUT" then
        if args.partNumber then return put_part(args) end
        return put_object(bucket, key)
    elseif method == "DELETE" then
        if args.uploadId then
            local dir = upload_dir(args.uploadId)
            if not dir then return fail("NoSuchUpload") end
            drop_upload(dir)
        else
            remove_object(bucket, key)
        end
        return answer(204)
    elseif method == "POST" then
        if args.uploads then return start_upload(bucket, key) end
        if args.uploadId then return complete_upload(bucket, key, args.uploadId) end
    end
    return fail("MethodNotAllowed")
end

local COUNTER = { GET = "gets", HEAD = "heads", PUT = "puts", DELETE = "deletes", POST = "posts" }

function M.serve()
    local method = ngx.req.get_method()
    control:incr("requests", 1, 0)
    if not inject() then return end
    local bucket, key = ngx.var.uri:match("^/([^/]+)/?(.*)$")
    if not bucket then return list_buckets() end
    if key ~= "" or method ~= "GET" then control:incr(COUNTER[method] or "others", 1, 0) end
    if key == "" then return serve_bucket(bucket, method, ngx.req.get_uri_args(100)) end
    return serve_object(bucket, key, method, method == "GET" and {} or method == "HEAD" and {} or ngx.req.get_uri_args(100))
end

-- Headers of an object that nginx's static handler serves.
function M.headers()
    ngx.header["x-amz-request-id"] = "0000000000000000"
    local etag = ngx.ctx.etag
    if not etag or ngx.ctx.answered or ngx.status >= 400 then return end
    ngx.header["ETag"] = etag
    local metadata = get_metadata(ngx.ctx.path)
    if metadata ~= "" then
        for name, value in metadata:gmatch("([^\t\n]+)\t([^\n]*)") do ngx.header[name] = value end
    end
end

-- GET /_control?name=value&...: sets what is named, answers all settings and counters as JSON.
function M.control()
    local args = ngx.req.get_uri_args()
    if args.reset_counters then
        for _, name in ipairs(control:get_keys(0)) do
            if not name:find("_rate$") and name ~= "latency_ms" and name ~= "rate_bytes_s" then control:delete(name) end
        end
    end
    for _, name in ipairs { "latency_ms", "error_rate", "reset_rate", "rate_bytes_s" } do
        if tonumber(args[name]) then control:set(name, tonumber(args[name])) end
    end
    local out = {}
    for _, name in ipairs(control:get_keys(0)) do out[#out + 1] = string.format('"%s": %.17g', name, control:get(name)) end
    ngx.header["Content-Type"] = "application/json"
    ngx.say("{" .. table.concat(out, ", ") .. "}")
end

return M
