%% SPDX-License-Identifier: Apache-2.0
%% @doc The `-proto_dist chatter' module: the callbacks that `net_kernel' knows.
%%
%% Processes of one connection, all linked, so that they die together:
%%
%% <pre>
%%   net_kernel ── supervisor (here: the handshake, then dist_util:con_loop)
%%                     └── controller (chatter_dist_ctrl: VM → channel)
%%                             └── input (chatter_dist_ctrl: channel → VM)
%% </pre>
%%
%% The acceptor is one more process; it hands every channel that another node opens to net_kernel.
%% None of them traps exits: net_kernel waits for their death when it tells them to die.
-module(chatter_dist).

-export([childspecs/0, listen/2, listen/1, accept/1, accept_connection/5, setup/5, close/1,
         select/1, address/0, address/1, is_node_name/1, setopts/2, getopts/2]).

%% Spawned.
-export([accept_loop/1, do_accept/6, do_setup/5]).

-include_lib("kernel/include/net_address.hrl").
-include_lib("kernel/include/dist_util.hrl").

%% For how long a channel is asked for again that ends before it is granted, and how soon.
-define(OPEN_MS, 2000).
-define(OPEN_AGAIN_MS, 10).

%% For how long a node is waited for of which others say that it is there.
-define(EXPECTED_MS, 5000).

%% @doc What runs below `net_sup' before any application does. Called again at every start of
%% distribution. A configuration that is refused halts a node that is booting, with one line.
-spec childspecs() -> {ok, [supervisor:child_spec()]}.
childspecs() ->
    {ok, chatter_dist_sup:child_specs()}.

%% @doc Starts the native node under this name and registers it.
-spec listen(atom(), string()) ->
          {ok, {chatter, #net_address{}, integer()}} | {error, term()}.
listen(Name, Host) ->
    Full = atom_to_list(Name) ++ "@" ++ Host,
    case chatter_node:start(Full, true) of
        {ok, Port} -> register_name(Name, Host, Port);
        {error, _} = Error -> Error
    end.

%% @doc As `listen/2', for releases of OTP that do not give the host.
-spec listen(atom()) -> {ok, {chatter, #net_address{}, integer()}} | {error, term()}.
listen(Name) ->
    {ok, Host} = inet:gethostname(),
    listen(Name, Host).

register_name(Name, Host, Port) ->
    Epmd = net_kernel:epmd_module(),
    Registered = case Epmd of
                     chatter_epmd -> Epmd:register_node(Name, Port, chatter);
                     _ -> Epmd:register_node(Name, Port)
                 end,
    case Registered of
        {ok, Creation} ->
            {ok, {chatter, net_address({any_address(), Port}, Host), Creation}};
        {error, already_registered} ->
            ok = chatter_node:stop(),
            {error, duplicate_name};
        {error, _} = Error ->
            ok = chatter_node:stop(),
            Error
    end.

any_address() ->
    {0, 0, 0, 0}.

%% @doc The address of a node that does not listen (`-dist_listen false', dynamic name). Called
%% instead of `listen/2', so the native node starts here; it dials and relays, but cannot be
%% dialled.
-spec address() -> #net_address{}.
address() ->
    {ok, Host} = inet:gethostname(),
    address(Host).

%% @doc As `address/0'; OTP 27 gives the host.
-spec address(string()) -> #net_address{}.
address(Host) ->
    case chatter_node:start(own_name(Host), false) of
        {ok, _} -> ok;
        {error, Reason} -> logger:error("chatter: ~ts", [Reason])
    end,
    net_address({any_address(), 0}, Host).

%% The full name of a node that does not listen, or "" if it gets one from the first peer.
own_name(Host) ->
    Given = case {init:get_argument(sname), init:get_argument(name)} of
                {{ok, [[Name]]}, _} -> Name;
                {_, {ok, [[Name]]}} -> Name;
                _ -> "undefined"
            end,
    case {Given, lists:member($@, Given)} of
        {"undefined", _} -> "";
        {_, true} -> Given;
        {_, false} -> Given ++ "@" ++ Host
    end.

net_address(Address, Host) ->
    #net_address{address = Address, host = Host, protocol = chatter, family = chatter}.

%% @doc Starts the acceptor.
-spec accept(chatter) -> pid().
accept(_Listen) ->
    spawn_opt(?MODULE, accept_loop, [self()], [link, {priority, max}]).

%% @private
-spec accept_loop(pid()) -> no_return().
accept_loop(Kernel) ->
    ok = chatter_nif:set_acceptor(self()),
    accept_next(Kernel).

accept_next(Kernel) ->
    receive
        {chatter_accept, Channel, Index, Name} ->
            Kernel ! {accept, self(), {Channel, Index, Name}, chatter, chatter},
            receive
                {Kernel, controller, Pid} -> Pid ! {self(), controller};
                {Kernel, unsupported_protocol} -> ok = chatter_nif:close(Channel)
            end
    end,
    accept_next(Kernel).

%% @doc Serves a connection that another node asks for.
-spec accept_connection(pid(), {chatter_nif:channel(), pos_integer(), binary()}, node(), term(),
                        non_neg_integer()) -> pid().
accept_connection(Acceptor, Socket, MyNode, Allowed, SetupTime) ->
    spawn_opt(?MODULE, do_accept, [self(), Acceptor, Socket, MyNode, Allowed, SetupTime],
              dist_util:net_ticker_spawn_options()).

%% @private
-spec do_accept(pid(), pid(), {chatter_nif:channel(), pos_integer(), binary()}, node(), term(),
                non_neg_integer()) -> no_return().
do_accept(Kernel, Acceptor, {Channel, Index, Name}, MyNode, Allowed, SetupTime) ->
    receive {Acceptor, controller} -> ok end,
    Timer = dist_util:start_timer(SetupTime),
    ok = chatter_settle:await(Name),
    dist_util:reset_timer(Timer),
    case chatter_nif:take(Channel) of
        {ok, Messages} ->
            lists:foreach(fun({M, C}) -> self() ! {chatter, Index, {handshake, M, C}} end,
                          Messages),
            HSData = hs_data(Channel, Index, Kernel, MyNode, Timer),
            dist_util:handshake_other_started(HSData#hs_data{allowed = Allowed});
        {error, Reason} ->
            ?shutdown2(unknown, Reason)
    end.

%% @doc Connects to another node.
-spec setup(node(), term(), node(), longnames | shortnames, non_neg_integer()) -> pid().
setup(Node, Type, MyNode, LongOrShortNames, SetupTime) ->
    Args = [self(), Node, {Type, LongOrShortNames}, MyNode, SetupTime],
    spawn_opt(?MODULE, do_setup, Args, dist_util:net_ticker_spawn_options()).

%% @private
-spec do_setup(pid(), node(), {term(), longnames | shortnames}, node(), non_neg_integer()) ->
          no_return().
do_setup(Kernel, Node, {Type, LongOrShortNames}, MyNode, SetupTime) ->
    Timer = dist_util:start_timer(SetupTime),
    ok = check_name(Node, LongOrShortNames),
    ok = own_name_known(MyNode),
    ok = chatter_settle:await(Node),
    dist_util:reset_timer(Timer),
    {Channel, Index} = open(Node, Timer, erlang:monotonic_time(millisecond) + ?OPEN_MS),
    HSData = hs_data(Channel, Index, Kernel, MyNode, Timer),
    dist_util:handshake_we_started(
      HSData#hs_data{other_node = Node, other_version = 6, request_type = Type}).

%% A node of `net_kernel:start(Name, #{dist_listen => false})' learns its name only here.
own_name_known(MyNode) ->
    {ok, _} = chatter_node:ensure_name(atom_to_list(MyNode)),
    ok.

%% A node that was just restarted may still be known as its former life: then the first channels
%% come to nothing, and the tables know better a moment later. To fail meanwhile would not be told
%% to somebody who tries again only: `global' has all cut off a node that one of them cannot reach.
open(Node, Timer, Until) ->
    ok = find_route(Node, Timer),
    case chatter_nif:open(atom_to_binary(Node), distribution) of
        {ok, Channel, Index} ->
            receive
                {chatter, Index, opened} ->
                    dist_util:reset_timer(Timer),
                    {Channel, Index};
                {chatter, Index, {closed, connection_refused}} ->
                    ?shutdown2(Node, connection_refused);
                {chatter, Index, {closed, Reason}} ->
                    open_again(Node, Timer, Until, Reason)
            end;
        {error, no_route} ->
            open_again(Node, Timer, Until, no_route);
        {error, Reason} ->
            ?shutdown2(Node, Reason)
    end.

open_again(Node, Timer, Until, Reason) ->
    case erlang:monotonic_time(millisecond) < Until of
        true -> receive after ?OPEN_AGAIN_MS -> open(Node, Timer, Until) end;
        false -> ?shutdown2(Node, Reason)
    end.

%% The same answers as the stock carriers give to a name of the wrong kind.
check_name(Node, LongOrShortNames) ->
    case {dist_util:split_node(Node), LongOrShortNames} of
        {{node, _, Host}, longnames} ->
            case lists:member($., Host) orelse is_ip(Host) of
                true -> ok;
                false ->
                    error_logger:error_msg("** System running to use fully qualified hostnames **~n"
                                           "** Hostname ~ts is illegal **~n", [Host]),
                    ?shutdown(Node)
            end;
        {{node, _, Host}, _} ->
            case lists:member($., Host) of
                false -> ok;
                true ->
                    error_logger:error_msg("** System NOT running to use fully qualified hostnames"
                                           " **~n** Hostname ~ts is illegal **~n", [Host]),
                    ?shutdown(Node)
            end;
        _ ->
            error_logger:error_msg("** Nodename ~p illegal **~n", [Node]),
            ?shutdown(Node)
    end.

is_ip(Host) ->
    case inet:parse_address(Host) of
        {ok, _} -> true;
        {error, _} -> false
    end.

find_route(Node, Timer) ->
    find_route(Node, Timer, erlang:monotonic_time(millisecond) + ?EXPECTED_MS).

find_route(Node, Timer, Until) ->
    Found = chatter_route:find(Node),
    dist_util:reset_timer(Timer),
    case Found =/= ok andalso erlang:monotonic_time(millisecond) < Until
        andalso chatter_settle:is_expected(Node) of
        _ when Found =:= ok -> ok;
        true -> receive after ?OPEN_AGAIN_MS -> find_route(Node, Timer, Until) end;
        false -> ?shutdown2(Node, unreachable)
    end.

hs_data(Channel, Index, Kernel, MyNode, Timer) ->
    Ctrl = chatter_dist_ctrl:start_link(Channel),
    ok = chatter_nif:controller(Channel, Ctrl),
    #hs_data{
       kernel_pid = Kernel,
       this_node = MyNode,
       socket = Ctrl,
       timer = Timer,
       this_flags = 0,
       f_send = fun(_, Data) -> f_send(Channel, Data) end,
       f_recv = fun(_, 0, _Timeout) -> f_recv(Channel, Index) end,
       f_setopts_pre_nodeup = fun(_) -> ok end,
       f_setopts_post_nodeup = fun(_) -> ok end,
       f_getll = fun(_) -> {ok, Ctrl} end,
       f_address = fun(_, Node) -> peer_address(Node) end,
       f_handshake_complete = fun(_, Node, DHandle) ->
                                      chatter_dist_ctrl:start_data(Ctrl, Node, DHandle)
                              end,
       %% The link state knows whether the other node is alive: no tick is ever sent.
       mf_tick = fun(_) -> ok end,
       mf_getstat = fun(_) ->
                            {Received, Sent, Pending} = chatter_nif:stat(Channel),
                            {ok, Received, Sent, Pending}
                    end}.

f_send(Channel, Data) ->
    case chatter_nif:handshake(Channel, iolist_to_binary(Data)) of
        closed -> {error, closed};
        _ -> ok
    end.

f_recv(Channel, Index) ->
    receive
        {chatter, Index, {handshake, Message, Cost}} ->
            ok = chatter_nif:grant(Channel, Cost),
            {ok, binary_to_list(Message)};
        {chatter, Index, {closed, _Reason}} ->
            {error, closed}
    end.

peer_address(Node) ->
    case dist_util:split_node(Node) of
        {node, _, Host} -> net_address(chatter_node:peer_address(Node), Host);
        _ -> {error, no_node}
    end.

%% @doc Gives data that is queued a moment to leave, then stops the native node. Called when
%% distribution stops and when a node shuts down.
-spec close(chatter) -> ok.
close(_Listen) ->
    ok = chatter_dist_ctrl:drain_all(),
    chatter_node:stop().

%% @doc Whether Chatter can reach a node of this name. Does not block: with several carriers in one
%% node, only what the network or the host's registry knows as Chatter is claimed.
-spec select(node()) -> boolean().
select(Node) ->
    case dist_util:split_node(Node) of
        {node, Name, Host} -> chatter_node:claims(Node, Name, Host);
        _ -> false
    end.

%% @doc Whether a name is well-formed.
-spec is_node_name(atom()) -> boolean().
is_node_name(Node) ->
    case dist_util:split_node(Node) of
        {node, _, _} -> true;
        _ -> false
    end.

%% @doc There are no socket options to set: links are shared by all connections.
-spec setopts(chatter, list()) -> {error, enotsup}.
setopts(_Listen, _Options) ->
    {error, enotsup}.

%% @doc See `setopts/2'.
-spec getopts(chatter, list()) -> {error, enotsup}.
getopts(_Listen, _Options) ->
    {error, enotsup}.
