%% SPDX-License-Identifier: Apache-2.0
%%
%% The `-epmd_module' of Chatter, and the interface of its host registry: names of the nodes on a
%% host and where they listen, by the protocol of epmd. Nodes of Chatter that were found in other
%% ways, as discovery does, are known too: `lookup/2' asks the source that `set_source/1' names
%% before it asks a registry. The other questions are of all carriers, and for registries alone.
%%
%% `start_link/0' starts chatter_epmd_sup, where the picture of the processes is. Questions run
%% in the process that asks.
%%
%% All of it runs before any application, without files, and without crypto.
-module(chatter_epmd).

-export([start_link/0, names/0, names/1, register_node/2, register_node/3]).
-export([port_please/2, port_please/3, address_please/3, listen_port_please/2]).
-export([lookup/2, lookup/3, set_source/1, info/0, main/0, main/1]).
-export_type([node_info/0]).

%% The versions of the distribution protocol that this VM may speak.
-define(DIST_LOW, 6).
-define(DIST_HIGH, 6).
-define(LOOKUP_MS, 5000).

%% The type of a node that is not hidden, in the protocol of epmd.
-define(NORMAL_NODE, 77).

-type name() :: atom() | string() | binary().
-type host() :: atom() | string() | inet:ip_address().
-type family() :: inet | inet6 | inet_tcp | inet6_tcp | chatter | atom().
-type node_info() :: #{port := inet:port_number(),
                       version := non_neg_integer(),     % 0: none that both speak
                       node_type := byte(),
                       protocol := byte(),
                       extra := binary(),
                       address := inet:ip_address(),     % where the registry answered
                       chatter_port => inet:port_number()}.

%% @doc Start the registry side of this node. `ignore' if it is already there, because the
%% carrier's child specifications started it (`-no_epmd').
-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() ->
    case chatter_epmd_sup:start_link() of
        {error, {already_started, _}} -> ignore;
        Started -> Started
    end.

%% @doc The names registered on this host.
-spec names() -> {ok, [{string(), inet:port_number()}]} | {error, address | inet:posix()}.
names() ->
    {ok, Host} = inet:gethostname(),
    names(Host).

%% @doc The names registered on a host, oldest first, as erl_epmd gives them.
-spec names(host()) -> {ok, [{string(), inet:port_number()}]} | {error, address | inet:posix()}.
names(Host) ->
    case chatter_epmd_client:addresses(Host, infinity) of
        {ok, Addresses} -> names_of_first(Addresses, chatter_epmd_config:port());
        {error, _} = Error -> Error
    end.

names_of_first([], _EpmdPort) -> {error, address};
names_of_first([Address | Rest], EpmdPort) ->
    case chatter_epmd_client:names(Address, EpmdPort, infinity) of
        {ok, EpmdPort, Names} -> {ok, lists:reverse([{to_string(N), P} || {N, P} <- Names])};
        _ -> names_of_first(Rest, EpmdPort)
    end.

%% @doc Register a listener of a carrier over TCP.
-spec register_node(name(), inet:port_number()) -> {ok, integer()} | {error, term()}.
register_node(Name, Port) -> register_node(Name, Port, inet).

%% @doc Register a listener of this node: of Chatter (`chatter'), or of a stock carrier (any
%% other family). A node may register one of each, in any order, under one name and with one
%% creation; the registry then names the stock port, and Chatter's in the extra.
%%
%% A registration that Chatter asks for succeeds, if the name is free, even while the registry
%% cannot be reached; the name gets in later. `{ok, -1}' makes the VM choose a creation: for
%% stock carriers without a registry, but with `-erl_epmd_port'.
-spec register_node(name(), inet:port_number(), family()) -> {ok, integer()} | {error, term()}.
register_node(Name, Port, chatter) ->
    chatter_epmd_agent:register(to_binary(Name), Port, chatter);
register_node(Name, Port, _Family) ->
    case chatter_epmd_agent:register(to_binary(Name), Port, stock) of
        {error, Reason} when Reason =/= already_registered ->
            case listen_port_please(Name, localhost) of
                {ok, 0} -> {error, Reason};
                {ok, _} -> {ok, -1}
            end;
        Answer -> Answer
    end.

%% @doc The port of a node, and the version to speak with it.
-spec port_please(name(), host()) ->
          {port, inet:port_number(), non_neg_integer()} | noport | closed | {error, term()}.
port_please(Name, Host) -> port_please(Name, Host, infinity).

%% @doc The same in limited time. As with erl_epmd, `-erl_epmd_port' is the answer if given,
%% and a host that cannot be reached has no port.
-spec port_please(name(), host(), timeout()) ->
          {port, inet:port_number(), non_neg_integer()} | noport | closed | {error, term()}.
port_please(Name, Host, Timeout) ->
    case listen_port_please(Name, Host) of
        {ok, 0} ->
            case find(Name, Host, Timeout) of
                {ok, #{port := Port} = Entry, _Address} -> {port, Port, version(Entry)};
                closed -> closed;
                {error, garbage} -> {error, garbage_from_epmd};
                _ -> noport
            end;
        {ok, Port} -> {port, Port, ?DIST_LOW}
    end.

%% @doc The address of a host.
-spec address_please(name(), host(), inet | inet6) -> {ok, inet:ip_address()} | {error, term()}.
address_please(_Name, Host, Family) -> inet:getaddr(Host, Family).

%% @doc The port on which all nodes listen, by `-erl_epmd_port', or 0.
-spec listen_port_please(name(), host()) -> {ok, inet:port_number()}.
listen_port_please(_Name, _Host) ->
    case init:get_argument(erl_epmd_port) of
        {ok, [[Text]]} ->
            try {ok, list_to_integer(Text)}
            catch error:badarg -> {ok, 0}
            end;
        _ -> {ok, 0}
    end.

%% @doc Names a function that knows where nodes of Chatter listen, without a registry: of name and
%% host it makes the address and port, at once. The last one given counts, for this VM.
-spec set_source(fun((string(), string()) ->
          {ok, inet:ip_address(), inet:port_number()} | none)) -> ok.
set_source(Source) ->
    persistent_term:put({?MODULE, source}, Source).

%% @doc All that the source or the registry of a host knows about a node.
-spec lookup(name(), host()) -> {ok, node_info()} | {error, noport | unreachable | term()}.
lookup(Name, Host) -> lookup(Name, Host, ?LOOKUP_MS).

%% @doc The same in limited time. `unreachable': the host is known but no registry answers.
-spec lookup(name(), host(), timeout()) ->
          {ok, node_info()} | {error, noport | unreachable | term()}.
lookup(Name, Host, Timeout) ->
    case ask_source(Name, Host) of
        {ok, Address, Port} ->
            {ok, #{port => Port, chatter_port => Port, address => Address, version => ?DIST_HIGH,
                   node_type => ?NORMAL_NODE, protocol => 0, extra => <<>>}};
        none -> ask_registry(Name, Host, Timeout)
    end.

ask_source(Name, Host) when is_tuple(Host) -> ask_source(Name, inet:ntoa(Host));
ask_source(Name, Host) ->
    Source = persistent_term:get({?MODULE, source}, fun(_, _) -> none end),
    %% It goes away with the distribution; then only registries are left.
    try Source(to_string(to_binary(Name)), to_string(to_binary(Host)))
    catch _:_ -> none
    end.

ask_registry(Name, Host, Timeout) ->
    case find(Name, Host, Timeout) of
        {ok, #{extra := Extra} = Entry, Address} ->
            Known = (maps:with([port, node_type, protocol, extra], Entry))
                #{version => version(Entry), address => Address},
            Told = maps:with([chatter_port], chatter_epmd_wire:decode_extra(Extra)),
            {ok, maps:merge(Known, Told)};
        noport -> {error, noport};
        closed -> {error, closed};
        {error, _} = Error -> Error
    end.

%% Addresses are tried until a registry answers.
find(Name, Host, Timeout) ->
    case chatter_epmd_client:addresses(Host, Timeout) of
        {ok, Addresses} -> find_at(Addresses, to_binary(Name), Timeout);
        {error, _} = Error -> Error
    end.

find_at([], _Name, _Timeout) -> {error, unreachable};
find_at([Address | Rest], Name, Timeout) ->
    case chatter_epmd_client:port(Address, chatter_epmd_config:port(), Name, Timeout) of
        {ok, Entry} -> {ok, Entry, Address};
        {error, unreachable} -> find_at(Rest, Name, Timeout);
        Answer -> Answer
    end.

version(#{low := Low, high := High}) when Low > ?DIST_HIGH; High < ?DIST_LOW -> 0;
version(#{high := High}) -> min(High, ?DIST_HIGH).

%% @doc Live figures: what this node has registered, and whether it serves the host.
-spec info() -> #{agent := map(), registry := map()}.
info() ->
    #{agent => chatter_epmd_agent:info(),
      registry => chatter_epmd_registry:info(chatter_epmd_registry)}.

%% @doc For `erl -run chatter_epmd main': see {@link chatter_epmd_cli:main/0}.
-spec main() -> no_return().
main() -> chatter_epmd_cli:main().

%% @doc Run as epmd does, with its arguments, and end the VM: see {@link chatter_epmd_cli:main/1}.
-spec main([string()]) -> no_return().
main(Args) -> chatter_epmd_cli:main(Args).

to_binary(Name) when is_atom(Name) -> atom_to_binary(Name, utf8);
to_binary(Name) -> unicode:characters_to_binary(Name).

%% Old nodes may have registered names that are not UTF-8.
to_string(Name) ->
    case unicode:characters_to_list(Name) of
        Chars when is_list(Chars) -> Chars;
        _ -> binary_to_list(Name)
    end.
