%% SPDX-License-Identifier: Apache-2.0
%%
%% The configuration: read once, checked whole, before anything listens.
%%
%% A key comes from the application environment of `chatter' (flags, sys.config, a release), else
%% from its environment variable, else from defaults/0. A value of `undefined' counts as not set.
%% Unknown keys and ill-typed values are refused by name in one line; the value of a secret is
%% never part of such a line, nor is the value of a key that is not known (it may be a secret
%% under a misspelt name).
%%
%% load/0 runs inside the start of the distribution, before the file server and before any
%% application: only pure modules, application:load/1, os:getenv/1 and prim_file are used here.
%% docs/operations.md describes every key; the test suite holds both together.

-module(chatter_config).

-export([load/0, validate/2, defaults/0, keys/0]).

-export_type([config/0, env_fun/0, host/0, neighbour/0]).

-include_lib("kernel/include/file.hrl").

-type host() :: inet:ip_address() | string().

-type neighbour() :: #{
    spec := {name, node()} | {address, host(), inet:port_number()},
    metric := default | pos_integer()
}.

-type config() :: #{
    my_addr := any | inet:ip_address(),
    my_port := auto | inet:port_number(),
    advertise := auto | [host()],
    key := undefined | binary(),
    key_file := undefined | string(),
    encryption := boolean(), unix_sockets := boolean(),
    neighbours := [neighbour()],
    links := auto | static,
    routes := [{node(), node()}],
    multicast := boolean(), multicast_addr := inet:ip_address(),
    multicast_port := inet:port_number(), multicast_ttl := non_neg_integer(),
    multicast_if := auto | all | [string()], multicast_rate := pos_integer(),
    multicast_queue := pos_integer(), beacon_ms := pos_integer(),
    discovery_links := non_neg_integer(),
    log_level := logger:level(),
    workers := pos_integer(), busy_poll_us := non_neg_integer(),
    epmd_request_ms := pos_integer(), epmd_max_pending := pos_integer(),
    epmd_max_names := pos_integer(), epmd_max_old_names := pos_integer(),
    hello_ms := pos_integer(), hold_ms := pos_integer(), unreachable_ms := non_neg_integer(),
    reconnect_min_ms := pos_integer(), reconnect_max_ms := pos_integer(),
    setup_retry_ms := pos_integer(), gap_timeout_ms := pos_integer(),
    handshake_timeout_ms := pos_integer(),
    lsp_refresh_s := pos_integer(), drain_ms := non_neg_integer(),
    channel_window := pos_integer(), retransmit_memory := pos_integer(),
    control_queue := pos_integer(), relay_queue := pos_integer(),
    channel_queue := pos_integer(), flow_quota := pos_integer(),
    flow_backpressure := suspend | channel, flows := all | 1,
    on_loss := nodedown | notify,
    max_frame := pos_integer(),
    broadcast_window := pos_integer(), broadcast_memory := pos_integer(),
    max_broadcast := pos_integer(),
    message_wait_ms := non_neg_integer(), message_idle_ms := pos_integer(),
    max_message := pos_integer(), max_message_channels := pos_integer(),
    max_calls := pos_integer(),
    max_half_open := pos_integer(), max_links := pos_integer(),
    max_nodes := pos_integer(), max_channels := pos_integer(),
    group_leave_ms := non_neg_integer(), group_forget_s := pos_integer(),
    group_collect_s := pos_integer(), group_sync_ms := pos_integer(),
    group_max_groups := pos_integer(), group_max_members := pos_integer(),
    group_max_items := pos_integer(), group_max_name := pos_integer()
}.

-type env_fun() :: fun((string()) -> string() | binary() | false).

-define(KIB, 1024).
-define(MIB, (1024 * ?KIB)).
-define(GIB, (1024 * ?MIB)).

%% The width of a metric on the wire: two bytes.
-define(MAX_METRIC, 65535).
%% Each neighbour among them costs a run of shortest paths whenever routes change.
-define(MAX_ROUTES, 64).
%% Addresses are told to every node of the network: keep the list short.
-define(MAX_ADVERTISE, 16).
%% Each is a socket.
-define(MAX_INTERFACES, 64).
%% A key is a line of text. More than this is the wrong file.
-define(MAX_KEY_FILE_BYTES, 4096).
%% A refused value is quoted up to this many characters.
-define(MAX_QUOTED_CHARS, 200).

%% @doc The configuration of this node, with `key_file' read into `key'. Loads the application
%% `chatter' if need be, so that flags and sys.config are seen. May be called any number of times.
-spec load() -> {ok, config()} | {error, unicode:chardata()}.
load() ->
    try
        ok = lists:foreach(fun check_flags/1, flags()),
        ok = load_application(),
        case validate(application:get_all_env(chatter), fun environment/1) of
            {ok, Config} -> {ok, read_key_file(Config)};
            {error, _} = Error -> Error
        end
    catch
        throw:{refused, Line} -> {error, Line}
    end.

%% @doc Checks `Given' (an application environment), completed by environment variables as `Env'
%% returns them (`false': not set) and by the defaults. Reads no file: with `key_file', the
%% result's `key' is still `undefined'. The first thing wrong is returned as one line.
-spec validate([{term(), term()}], env_fun()) -> {ok, config()} | {error, unicode:chardata()}.
validate(Given, Env) ->
    try
        lists:foreach(fun({Key, _}) -> ok = refuse_foreign(Key) end, lists:sort(Given)),
        Config = maps:from_list([{Key, value(Key, Given, Env)} || Key <- keys()]),
        ok = consistent(Config),
        {ok, Config}
    catch
        throw:{refused, Line} -> {error, Line}
    end.

%% @doc The value of each key that is set nowhere.
-spec defaults() -> config().
defaults() ->
    #{
        my_addr => any,
        my_port => auto,
        advertise => auto,
        key => undefined,
        key_file => undefined,
        encryption => true,
        unix_sockets => true,
        neighbours => [],
        links => auto,
        routes => [],
        multicast => true, multicast_addr => {224, 1, 1, 1}, multicast_port => 29999,
        multicast_ttl => 4, multicast_if => auto, multicast_rate => 2500000,
        multicast_queue => 256 * ?KIB, beacon_ms => 10000, discovery_links => 2,
        log_level => info,
        workers => 2, busy_poll_us => 100,
        epmd_request_ms => 10000, epmd_max_pending => 2000,
        epmd_max_names => 4000, epmd_max_old_names => 1000,
        hello_ms => 250, hold_ms => 1000, unreachable_ms => 500,
        reconnect_min_ms => 50, reconnect_max_ms => 1000,
        setup_retry_ms => 250, gap_timeout_ms => 10000, handshake_timeout_ms => 5000,
        lsp_refresh_s => 900, drain_ms => 1000,
        channel_window => 8 * ?MIB, retransmit_memory => 256 * ?MIB,
        control_queue => 64 * ?KIB, relay_queue => 16 * ?MIB,
        channel_queue => 16 * ?MIB, flow_quota => 256 * ?KIB, flow_backpressure => suspend,
        flows => all, on_loss => nodedown,
        max_frame => 2 * ?GIB - 1,
        broadcast_window => 4 * ?MIB, broadcast_memory => 64 * ?MIB, max_broadcast => 16 * ?MIB,
        message_wait_ms => 7000, message_idle_ms => 60000,
        max_message => 64 * ?MIB, max_message_channels => 4096, max_calls => 10000,
        max_half_open => 256, max_links => 1024, max_nodes => 4096, max_channels => 65536,
        group_leave_ms => 5000, group_forget_s => 3600, group_collect_s => 60,
        group_sync_ms => 1000, group_max_groups => 1024, group_max_members => 4096,
        group_max_items => 1024, group_max_name => 255
    }.

%% @doc Every key that has a meaning in this version, sorted.
-spec keys() -> [atom()].
keys() ->
    lists:sort(maps:keys(defaults())).

%%% ---------------------------------------------------------------------------------------------
%%% One clause per key

%% The value in the form that the rest of Chatter uses, or what would have been right.
-spec check(atom(), term()) -> {ok, term()} | {error, unicode:chardata()}.
check(my_addr, V) -> listen_address(V);
check(my_port, V) -> listen_port(V);
check(advertise, V) -> advertise(V);
check(key, V) -> secret(V);
check(key_file, V) -> path(V);
check(encryption, V) -> one_of([true, false], V);
check(unix_sockets, V) -> one_of([true, false], V);
check(neighbours, V) -> neighbours(V);
check(links, V) -> one_of([auto, static], V);
check(routes, V) -> routes(V);
check(multicast, V) -> one_of([true, false], V);
check(multicast_addr, V) -> group(V);
check(multicast_port, V) -> within(1, 65535, V);
check(multicast_ttl, V) -> within(0, 255, V);
check(multicast_if, V) -> interfaces(V);
check(multicast_rate, V) -> within(10000, 10000000000, V);
check(multicast_queue, V) -> within(4 * ?KIB, 64 * ?MIB, V);
check(beacon_ms, V) -> within(100, 600000, V);
check(discovery_links, V) -> within(0, 64, V);
check(hello_ms, V) -> within(10, 60000, V);
check(hold_ms, V) -> within(10, 600000, V);
check(unreachable_ms, V) -> within(0, 600000, V);
check(reconnect_min_ms, V) -> within(10, 60000, V);
check(reconnect_max_ms, V) -> within(10, 3600000, V);
check(lsp_refresh_s, V) -> within(10, 2700, V);
check(setup_retry_ms, V) -> within(10, 10000, V);
check(gap_timeout_ms, V) -> within(100, 600000, V);
check(handshake_timeout_ms, V) -> within(100, 60000, V);
check(drain_ms, V) -> within(0, 60000, V);
check(channel_window, V) -> within(64 * ?KIB, ?GIB, V);
check(retransmit_memory, V) -> within(?MIB, 1024 * ?GIB, V);
check(control_queue, V) -> within(4 * ?KIB, 4 * ?MIB, V);
check(channel_queue, V) -> within(64 * ?KIB, ?GIB, V);
check(flow_backpressure, V) -> one_of([suspend, channel], V);
check(on_loss, V) -> one_of([nodedown, notify], V);
check(flows, V) -> one_of([all, 1], V);
check(flow_quota, V) -> within(16 * ?KIB, ?GIB, V);
check(relay_queue, V) -> within(64 * ?KIB, ?GIB, V);
check(max_frame, V) -> within(?MIB, 2 * ?GIB - 1, V);
check(broadcast_window, V) -> within(64 * ?KIB, ?GIB, V);
check(broadcast_memory, V) -> within(?MIB, 1024 * ?GIB, V);
check(max_broadcast, V) -> within(64 * ?KIB, ?GIB, V);
check(message_wait_ms, V) -> within(0, 600000, V);
check(message_idle_ms, V) -> within(100, 3600000, V);
check(max_message, V) -> within(64 * ?KIB, 256 * ?MIB, V);
check(max_message_channels, V) -> within(1, 65536, V);
check(max_calls, V) -> within(1, 1000000, V);
check(max_half_open, V) -> within(1, 65535, V);
%% No LSP states more.
check(max_links, V) -> within(1, 1024, V);
check(max_nodes, V) -> within(2, 65536, V);
check(max_channels, V) -> within(1, 1048576, V);
check(group_leave_ms, V) -> within(0, 3600000, V);
check(group_forget_s, V) -> within(1, 604800, V);
check(group_collect_s, V) -> within(1, 86400, V);
check(group_sync_ms, V) -> within(100, 600000, V);
check(group_max_groups, V) -> within(1, 1048576, V);
check(group_max_members, V) -> within(1, 65536, V);
check(group_max_items, V) -> within(1, 1048576, V);
check(group_max_name, V) -> within(1, 255, V);
check(workers, V) -> within(1, 64, V);
check(busy_poll_us, V) -> within(0, 1000, V);
check(epmd_request_ms, V) -> within(100, 600000, V);
check(epmd_max_pending, V) -> within(1, 1000000, V);
check(epmd_max_names, V) -> within(1, 1000000, V);
check(epmd_max_old_names, V) -> within(1, 1000000, V);
check(log_level, V) -> one_of(log_levels(), V).

variable(my_addr) -> "CHATTER_ADDRESS";
variable(my_port) -> "CHATTER_PORT";
variable(key) -> "CHATTER_KEY";
variable(multicast_addr) -> "CHATTER_MULTICAST_ADDRESS";
variable(multicast_port) -> "CHATTER_MULTICAST_PORT";
variable(multicast_ttl) -> "CHATTER_MULTICAST_TTL";
variable(_) -> none.

%% What must hold between keys that are each fine alone.
consistent(Config) ->
    #{hello_ms := Hello, reconnect_min_ms := Reconnect, channel_window := Window} = Config,
    ok = at_least(hold_ms, 2 * Hello, "2 * hello_ms", Config),
    ok = at_least(reconnect_max_ms, Reconnect, "reconnect_min_ms", Config),
    ok = at_least(retransmit_memory, Window, "channel_window", Config),
    Neighbours = length(maps:get(neighbours, Config)),
    ok = at_least(max_links, Neighbours, "the number of neighbours", Config),
    one_key_source(Config).

at_least(Key, Min, What, Config) ->
    case maps:get(Key, Config) of
        V when V >= Min -> ok;
        V -> refuse("~ts = ~b is refused: it must be at least ~ts (~b)", [Key, V, What, Min])
    end.

one_key_source(#{key := Key, key_file := File}) when Key =/= undefined, File =/= undefined ->
    refuse("key (or CHATTER_KEY) and key_file are both set: keep one of them", []);
one_key_source(_) ->
    ok.

%%% ---------------------------------------------------------------------------------------------
%%% Kinds of values

within(Min, Max, V) when is_integer(V), Min =< V, V =< Max -> {ok, V};
within(Min, Max, _) -> expected("an integer from ~b to ~b", [Min, Max]).

one_of(Choices, V) ->
    case lists:member(V, Choices) of
        true -> {ok, V};
        false -> expected("~ts", [lists:join(" or ", [io_lib:format("~tp", [C]) || C <- Choices])])
    end.

log_levels() -> [emergency, alert, critical, error, warning, notice, info, debug].

listen_address(V) ->
    case {text(V), ip(V)} of
        {{ok, "any"}, _} -> {ok, any};
        {_, {ok, Ip}} -> {ok, Ip};
        {_, error} -> expected("any, or an IPv4 or IPv6 address such as '\"10.0.0.1\"'", [])
    end.

%% Environment variables are text: "29999".
listen_port(V) ->
    case text(V) of
        {ok, "auto"} -> {ok, auto};
        {ok, Text} -> port_number(string:to_integer(Text));
        error -> port_number({V, ""})
    end.

port_number({Port, ""}) when is_integer(Port), 0 =< Port, Port =< 65535 -> {ok, Port};
port_number(_) -> expected("auto, or a port from 1 to 65535, or 0 for any free one", []).

group(V) ->
    case ip(V) of
        {ok, {A, _, _, _} = Ip} when 224 =< A, A =< 239 -> {ok, Ip};
        {ok, {A, _, _, _, _, _, _, _} = Ip} when A band 16#ff00 =:= 16#ff00 -> {ok, Ip};
        _ -> expected("a multicast group: an IPv4 address from 224.0.0.0 to 239.255.255.255, "
                      "or an IPv6 address of ff00::/8", [])
    end.

interfaces(auto) -> {ok, auto};
interfaces(all) -> {ok, all};
interfaces(V) ->
    Names = [interface(Item) || Item <- one_or_more(V)],
    case lists:member(error, Names) orelse length(Names) > ?MAX_INTERFACES orelse Names =:= [] of
        false -> {ok, [Name || {ok, Name} <- Names]};
        true -> expected_interfaces()
    end.

%% A name, or an address that it has; what is kept is text.
interface(V) when is_tuple(V) ->
    case ip(V) of
        {ok, Ip} -> {ok, inet:ntoa(Ip)};
        error -> error
    end;
interface(V) ->
    case text(V) of
        {ok, Text} ->
            case re:run(Text, "^[^\\s/]{1,45}$", [{capture, none}, unicode, dollar_endonly]) of
                match -> {ok, Text};
                nomatch -> error
            end;
        error -> error
    end.

expected_interfaces() ->
    expected("auto, all, or a list of at most ~b names or addresses of interfaces",
             [?MAX_INTERFACES]).

advertise(auto) ->
    {ok, auto};
advertise(V) ->
    Hosts = [host(Item) || Item <- one_or_more(V)],
    Forms = "auto, or a list of at most ~b addresses or host names, no wildcards",
    case lists:member(error, Hosts) orelse length(Hosts) > ?MAX_ADVERTISE of
        false -> {ok, [Host || {ok, Host} <- Hosts]};
        true -> expected(Forms, [?MAX_ADVERTISE])
    end.

%% A single address is often written without the list around it.
one_or_more([]) -> [];
one_or_more(V) when length(V) > 0 ->
    case text(V) of
        {ok, _} -> [V];
        error -> V
    end;
one_or_more(V) -> [V].

%% Its strength is judged by the native side; here only its form.
secret(V) when is_binary(V), V =/= <<>> -> {ok, V};
secret(V) ->
    case is_list(V) andalso text(V) of
        {ok, [_ | _] = Text} -> {ok, unicode:characters_to_binary(Text)};
        _ -> expected("a string or a binary that is not empty", [])
    end.

path(V) ->
    case text(V) of
        {ok, [_ | _] = Path} -> {ok, Path};
        _ -> expected("the path of a file that holds the key", [])
    end.

neighbours(V) when length(V) >= 0 -> neighbours(V, []);
neighbours(_) -> expected_neighbours("this is not a list", []).

neighbours([Item | Items], Known) ->
    case neighbour(Item) of
        {ok, #{spec := Spec} = Neighbour} ->
            case lists:any(fun(#{spec := Other}) -> Other =:= Spec end, Known) of
                false -> neighbours(Items, [Neighbour | Known]);
                true -> expected_neighbours("~ts is there twice", [quote(Item)])
            end;
        error ->
            expected_neighbours("~ts is none of these", [quote(Item)])
    end;
neighbours([], Known) -> {ok, lists:reverse(Known)}.

expected_neighbours(Format, Args) ->
    Forms = "a list of 'name@host', {Host, Port} or {'name@host', Metric}, each once; ",
    expected(Forms ++ Format, Args).

neighbour({Who, Number}) when is_integer(Number), 1 =< Number, Number =< 65535 ->
    case {node_name(Who), host(Who)} of
        {{ok, Name}, _} when Number =< ?MAX_METRIC ->
            {ok, #{spec => {name, Name}, metric => Number}};
        {error, {ok, Host}} ->
            {ok, #{spec => {address, Host, Number}, metric => default}};
        _ ->
            error
    end;
neighbour(Who) ->
    case node_name(Who) of
        {ok, Name} -> {ok, #{spec => {name, Name}, metric => default}};
        error -> error
    end.

routes(V) when length(V) =< ?MAX_ROUTES -> routes(V, []);
routes(_) -> expected_routes("this is not such a list", []).

routes([{To, Via} = Item | Items], Known) ->
    case {node_name(To), node_name(Via)} of
        {{ok, Same}, {ok, Same}} ->
            expected_routes("~ts leads to itself", [quote(Item)]);
        {{ok, Node}, {ok, NextHop}} ->
            case lists:keymember(Node, 1, Known) of
                false -> routes(Items, [{Node, NextHop} | Known]);
                true -> expected_routes("~ts is there twice", [quote(To)])
            end;
        _ ->
            expected_routes("~ts is none of these", [quote(Item)])
    end;
routes([], Known) -> {ok, lists:reverse(Known)};
routes([Item | _], _) -> expected_routes("~ts is none of these", [quote(Item)]).

expected_routes(Format, Args) ->
    Forms = "a list of at most 64 {'to@host', 'neighbour@host'}, each destination once; ",
    expected(Forms ++ Format, Args).

%% Names are the operator's, not a peer's: making the atom is safe here.
node_name(V) ->
    Name = "^[^@\\s]+@[^@\\s]+$",
    case text(V) of
        {ok, Text} when length(Text) =< 255 ->
            case re:run(Text, Name, [{capture, none}, unicode, dollar_endonly]) of
                match -> {ok, list_to_atom(Text)};
                nomatch -> error
            end;
        _ ->
            error
    end.

%% An address or a name to dial. The wildcard can be listened on but not dialled.
host(V) ->
    case {ip(V), text(V)} of
        {{ok, {0, 0, 0, 0}}, _} -> error;
        {{ok, {0, 0, 0, 0, 0, 0, 0, 0}}, _} -> error;
        {{ok, Ip}, _} -> {ok, Ip};
        {error, {ok, Text}} -> host_name(Text);
        {error, error} -> error
    end.

%% All digits and dots is a mistyped address, not a name.
host_name(Text) ->
    Name = "^(?![0-9.]+$)[A-Za-z0-9_][A-Za-z0-9_-]*(\\.[A-Za-z0-9_-]+)*\\.?$",
    case re:run(Text, Name, [{capture, none}, unicode, dollar_endonly]) of
        match when length(Text) =< 253 -> {ok, Text};
        _ -> error
    end.

ip(V) when is_tuple(V) ->
    case inet:is_ip_address(V) of
        true -> {ok, V};
        false -> error
    end;
ip(V) ->
    %% The parser would drop the zone of "fe80::1%eth0" without a word.
    case text(V) of
        {ok, Text} ->
            case lists:member($%, Text) orelse inet:parse_strict_address(Text) of
                {ok, Ip} -> {ok, Ip};
                _ -> error
            end;
        error -> error
    end.

%% Text may be written as a string, a binary or an atom.
text(V) when is_atom(V) -> {ok, atom_to_list(V)};
text(V) when is_binary(V) -> text(unicode:characters_to_list(V));
text(V) ->
    case io_lib:char_list(V) of
        true -> {ok, V};
        false -> error
    end.

%%% ---------------------------------------------------------------------------------------------
%%% Where values come from

value(Key, Given, Env) ->
    Variable = variable(Key),
    case proplists:get_value(Key, Given) of
        undefined when Variable =:= none -> maps:get(Key, defaults());
        undefined -> value_of_variable(Key, Variable, Env(Variable));
        Value -> accept(Key, Value, "")
    end.

value_of_variable(Key, _, false) -> maps:get(Key, defaults());
value_of_variable(Key, Variable, Text) ->
    accept(Key, number(Key, Text), [" (from ", Variable, ")"]).

%% Variables are text.
number(Key, Text) when Key =:= multicast_port; Key =:= multicast_ttl ->
    case string:to_integer(Text) of
        {N, Rest} when is_integer(N), Rest =:= ""; is_integer(N), Rest =:= <<>> -> N;
        _ -> Text
    end;
number(_, Text) -> Text.

accept(Key, Value, Origin) ->
    case check(Key, Value) of
        {ok, Accepted} ->
            Accepted;
        {error, Expected} ->
            Shown = [[" = ", quote(Value)] || Key =/= key, Key =/= key_file],
            refuse("~ts~ts~ts is refused: it must be ~ts", [Key, Shown, Origin, Expected])
    end.

%% UTF-8 as the shell set it, whatever the locale of this VM.
environment(Variable) ->
    case os:getenv(Variable) of
        false -> false;
        Text -> unicode:characters_to_binary(Text, unicode, file:native_name_encoding())
    end.

load_application() ->
    case application:load(chatter) of
        ok -> ok;
        {error, {already_loaded, chatter}} -> ok;
        {error, {"no such file or directory", "chatter.app"}} ->
            refuse("chatter.app is not found: add the ebin directory of chatter with -pa", []);
        {error, Reason} -> refuse("chatter.app cannot be loaded: ~ts", [quote(Reason)])
    end.

flags() ->
    case init:get_argument(chatter) of
        {ok, Flags} -> Flags;
        error -> []
    end.

%% Before the application controller sees the words after one -chatter: it drops the last of an
%% odd number in silence, and logs a text that is not a term, which may be the secret.
check_flags([Key, Value | Words]) ->
    case is_term(Key) andalso is_term(Value) of
        true ->
            check_flags(Words);
        false ->
            Where = [["the value of ", Key] || is_known(Key)] ++ ["a word after -chatter"],
            refuse("~ts is not an Erlang term: write text as '\"text\"'", [hd(Where)])
    end;
check_flags([Last]) ->
    case is_known(Last) of
        true -> refuse("~ts has no value on the command line", [Last]);
        false -> refuse("the words after -chatter are not pairs of key and value", [])
    end;
check_flags([]) ->
    ok.

is_term(Text) ->
    case erl_scan:string(Text) of
        {ok, Tokens, _} -> element(1, erl_parse:parse_term(Tokens ++ [{dot, 1}])) =:= ok;
        _ -> false
    end.

is_known(Word) -> lists:member(Word, [atom_to_list(Key) || Key <- keys()]).

read_key_file(#{key_file := undefined} = Config) ->
    Config;
read_key_file(#{key_file := File} = Config) ->
    case prim_file:read_file_info(File) of
        {ok, #file_info{type = regular, size = Size}} when Size =< ?MAX_KEY_FILE_BYTES ->
            Config#{key := key_of_file(File)};
        {ok, #file_info{type = regular}} ->
            refuse_key_file(File, io_lib:format("more than ~b bytes", [?MAX_KEY_FILE_BYTES]));
        {ok, _} ->
            refuse_key_file(File, "not a regular file");
        {error, Reason} ->
            refuse_key_file(File, file:format_error(Reason))
    end.

%% The line end that editors and openssl leave is not part of the key.
key_of_file(File) ->
    case prim_file:read_file(File) of
        {ok, Content} ->
            case re:replace(Content, "\\r?\\n\\z", "", [{return, binary}]) of
                <<>> -> refuse_key_file(File, "it is empty");
                Key -> Key
            end;
        {error, Reason} ->
            refuse_key_file(File, file:format_error(Reason))
    end.

%%% ---------------------------------------------------------------------------------------------
%%% Refusals

refuse_foreign(Key) ->
    case lists:member(Key, keys()) of
        true -> ok;
        false when is_atom(Key) -> refuse("unknown key '~ts'~ts", [Key, suggestion(Key)]);
        false -> refuse("a key is an atom, and one that was given is not", [])
    end.

suggestion(Unknown) ->
    Name = atom_to_list(Unknown),
    Keys = [atom_to_list(Key) || Key <- keys()],
    case lists:sort([{distance(Name, Key), Key} || Key <- Keys, resembles(Name, Key)]) of
        [{_, Key} | _] -> [" (did you mean '", Key, "'?)"];
        [] -> ""
    end.

%% A slip of the fingers, or a part left out: `hello' for hello_ms, `port' for my_port.
resembles(Name, Key) ->
    distance(Name, Key) =< 2 orelse
        (length(Name) >= 4 andalso (lists:prefix(Name, Key) orelse lists:suffix(Name, Key))).

%% Levenshtein, row by row.
distance(Left, Right) ->
    First = lists:seq(0, length(Right)),
    lists:last(lists:foldl(fun(C, Row) -> next_row(C, Right, Row) end, First, Left)).

next_row(C, Right, [Top | _] = Above) -> [Top + 1 | cells(C, Right, Above, Top + 1)].

cells(C, [D | Right], [Diagonal, Up | Above], Before) ->
    Changed = Diagonal + length([D || D =/= C]),
    Cell = lists:min([Changed, Up + 1, Before + 1]),
    [Cell | cells(C, Right, [Up | Above], Cell)];
cells(_, [], [_], _) ->
    [].

expected(Format, Args) -> {error, io_lib:format(Format, Args)}.

%% What has no slash may be the key itself, put where its path belongs.
-spec refuse_key_file(string(), unicode:chardata()) -> no_return().
refuse_key_file(File, Why) ->
    Shown = [[" = ", quote(File)] || lists:member($/, File)],
    refuse("key_file~ts cannot be read: ~ts", [Shown, Why]).

-spec refuse(io:format(), [term()]) -> no_return().
refuse(Format, Args) ->
    Line = lists:flatten(io_lib:format("chatter: " ++ Format, Args)),
    throw({refused, [C || C <- Line, C >= $\s]}).

quote(V) ->
    Readable =
        case is_binary(V) andalso text(V) of
            {ok, Text} -> Text;
            _ -> V
        end,
    io_lib:format("~0tp", [Readable], [{chars_limit, ?MAX_QUOTED_CHARS}]).
